package ingress

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestTCPPort(t *testing.T) {
	rs := replicas{"a": echoReplica(t, "a"), "b": echoReplica(t, "b"), "dead": echoReplica(t, "dead")}
	rs["dead"].kill()
	f := run(t, rs, nil)
	port := freePort(t)
	address := fmt.Sprintf("127.0.0.1:%d", port)
	set := func(ids ...string) {
		f.Set(Desired{Ports: map[Port]Service{{"tcp", port}: of(9000, ids...)}})
	}
	set("dead", "a")
	eventually(t, 10*time.Second, "the port to open", func() bool {
		c, err := net.Dial("tcp", address)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	c, r, who := dialTCP(t, address)
	if who != "a" {
		t.Fatalf("%q answers", who)
	}
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil { // a half-close goes through
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(r); err != nil || string(rest) != "hello" {
		t.Errorf("%q, %v", rest, err)
	}

	old, oldr, _ := dialTCP(t, address)
	set("b") // a drains
	if _, _, who := dialTCP(t, address); who != "b" {
		t.Errorf("%q has the new connection", who)
	}
	if _, err := io.WriteString(old, "still\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := oldr.ReadString('\n'); err != nil || line != "still\n" {
		t.Errorf("the old connection: %q, %v", line, err)
	}
	f.Set(Desired{Ports: map[Port]Service{{"tcp", port}: {Port: 9000, Replicas: []Replica{{ID: "a"}, {ID: "b", Gone: true}}}}})
	f.Set(Desired{})
	eventually(t, 10*time.Second, "the port to close", func() bool {
		c, err := net.Dial("tcp", address)
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
}

// TestPortTaken: a port that another program has is served as soon as it is free.
func TestPortTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	f := run(t, replicas{"a": echoReplica(t, "a")}, nil)
	want := Desired{Ports: map[Port]Service{{"tcp", port}: of(9000, "a")}}
	f.Set(want)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 2*portRetry, "the port", func() bool {
		f.Set(want)
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return false
		}
		defer c.Close()
		line, err := bufio.NewReader(c).ReadString('\n')
		return err == nil && line == "a\n"
	})
}

func TestSilentConnectionEnds(t *testing.T) {
	f := run(t, replicas{"a": echoReplica(t, "a")}, func(c *Config) { c.Limits.Silence = 100 * time.Millisecond })
	port := freePort(t)
	f.Set(Desired{Ports: map[Port]Service{{"tcp", port}: of(9000, "a")}})
	eventually(t, 20*time.Second, "a connection, and its end", func() bool {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return false
		}
		defer c.Close()
		b, err := io.ReadAll(c)
		return err == nil && string(b) == "a\n"
	})
}

// asks sends a datagram until an answer comes, for a while.
func asks(t *testing.T, c net.Conn, text string, wait time.Duration) string {
	t.Helper()
	buf := make([]byte, MaxDatagram)
	for end := time.Now().Add(wait); time.Now().Before(end); {
		if _, err := io.WriteString(c, text); err != nil {
			continue // about an earlier one
		}
		if err := c.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(buf); err == nil && strings.HasSuffix(string(buf[:n]), text) {
			return string(buf[:n])
		}
	}
	return ""
}

func TestUDPPort(t *testing.T) {
	rs := replicas{"a": echoReplica(t, "a"), "b": echoReplica(t, "b")}
	f := run(t, rs, func(c *Config) { c.Limits.FlowsOfOne, c.Limits.FlowIdle = 2, time.Second })
	port := freePort(t)
	set := func(ids ...string) {
		f.Set(Desired{Ports: map[Port]Service{{"udp", port}: of(53, ids...)}})
	}
	open := func() net.Conn {
		c, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	set("a")
	one := open()
	if got := asks(t, one, "ping", 20*time.Second); got != "a ping" {
		t.Fatalf("%q", got)
	}
	if got := asks(t, one, strings.Repeat("x", 1400), 20*time.Second); len(got) != 1402 {
		t.Errorf("%d bytes of 1402", len(got))
	}
	f.Set(Desired{Ports: map[Port]Service{{"udp", port}: {Port: 53, Replicas: []Replica{{ID: "a", Gone: true}, {ID: "b"}}}}})
	if got := asks(t, one, "pong", 20*time.Second); got != "b pong" {
		t.Errorf("after a is gone: %q", got)
	}
	two, three := open(), open()
	if got := asks(t, two, "two", 20*time.Second); got != "b two" {
		t.Errorf("%q", got)
	}
	eventually(t, 20*time.Second, "a flow over the limit to be refused", func() bool {
		return asks(t, one, "1", time.Second) != "" && asks(t, two, "2", time.Second) != "" && asks(t, three, "3", 100*time.Millisecond) == ""
	})
	if f.Stats().Refused["flows_of_one"] == 0 {
		t.Error("no refusal is counted")
	}
	if got := asks(t, three, "three", 20*time.Second); got != "b three" { // the others are idle
		t.Errorf("%q", got)
	}
}

// TestDatagrams: what was written is read, and nothing else is.
func TestDatagrams(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 0, 300), 0, 20).Draw(t, "datagrams")
		var stream bytes.Buffer
		for _, p := range want {
			if err := WriteDatagram(&stream, p); err != nil {
				t.Fatal(err)
			}
		}
		cut := rapid.IntRange(0, stream.Len()).Draw(t, "cut")
		r, buf := bytes.NewReader(stream.Bytes()[:cut]), make([]byte, MaxDatagram)
		read := 0
		for {
			n, err := ReadDatagram(r, buf)
			if err != nil {
				break
			}
			if read >= len(want) || !bytes.Equal(buf[:n], want[read]) {
				t.Fatalf("datagram %d: %x", read, buf[:n])
			}
			read++
		}
		if cut == stream.Len() && read != len(want) {
			t.Fatalf("%d of %d", read, len(want))
		}
	})
	if WriteDatagram(io.Discard, make([]byte, MaxDatagram+1)) == nil {
		t.Error("a datagram that is too long")
	}
}

// Whatever comes is datagrams that are written as they came, and then an end.
func FuzzDatagrams(f *testing.F) {
	f.Add([]byte("\x00\x01a\x00\x00\x00\x02bc"))
	f.Add([]byte("\xff\xffabc"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		r, buf := bytes.NewReader(stream), make([]byte, MaxDatagram)
		var again bytes.Buffer
		for {
			n, err := ReadDatagram(r, buf)
			if err != nil {
				break
			}
			if err := WriteDatagram(&again, buf[:n]); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.HasPrefix(stream, again.Bytes()) {
			t.Fatalf("%x is written as %x", stream, again.Bytes())
		}
	})
}
