package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

// clientAttacks are on the HTTP API and the streams to guests, by an owner that is
// a member.
var clientAttacks = []attack{
	{name: "http-slow-headers", idle: true, role: asClient, reason: "time", strike: slowRequests("GET /v1/health HTTP/1.1\r\nHost: x\r\nX: ")},
	{name: "http-slow-body", idle: true, role: asClient, reason: "time", strike: slowRequests("POST /v1/statements HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")},
	{name: "http-large-headers", role: asClient, reason: "shape", strike: requests(http.StatusRequestHeaderFieldsTooLarge,
		"GET /v1/health HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("x", 1<<20)+"\r\n\r\n")},
	{name: "http-large-body", role: asClient, reason: "size", strike: requests(http.StatusRequestEntityTooLarge, post("/v1/statements", `{"statements":["`+strings.Repeat("A", 4<<20)+`"]}`))},
	{name: "http-nested", role: asClient, reason: "shape", strike: requests(http.StatusBadRequest, post("/v1/statements", `{"statements":`+strings.Repeat("[", 900_000)))},
	{name: "http-no-http", role: asClient, reason: "shape", strike: requests(http.StatusBadRequest, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")},
	{name: "http-smuggled", role: asClient, reason: "shape", strike: requests(http.StatusBadRequest,
		"POST /v1/statements HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 50\r\n\r\n{}")},
	{name: "http-operators-verbs", role: asClient, reason: "authority", strike: requests(http.StatusForbidden,
		post("/v1/node/drain", `{"draining":true}`), post("/v1/invites", `{}`), post("/v1/bases", `{}`),
		post("/v1/nodes/12D3KooWEXbUdA2BTkvhN6ztFo5APBkDzKn6rVCAXCDZx9zBTK1z/forget", `{}`), get("/debug/pprof/heap"))},
	{name: "http-anothers-logs", role: asClient, reason: "authority", needs: func(p prey) bool { return p.victim != "" }, strike: anothersLogs},
	{name: "http-streams", role: asClient, reason: "rate", strike: manyStreams},
	{name: "guest-anothers", role: asClient, reason: "authority", needs: func(p prey) bool { return p.victim != "" }, strike: anothersGuest},
	{name: "guest-no-header", role: asClient, reason: "shape", strike: guestHeaders(strings.Repeat("x", 70<<10) + "\n")},
}

func post(path, body string) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
}

func get(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n" }

// call makes one request on a stream of its own and reads the answer to its end.
func (l *liar) call(ctx context.Context, to peer.ID, method, path, body string) (status int, err error) {
	raw := post(path, body)
	if method != http.MethodPost {
		raw = get(path)
	}
	return l.exchange(ctx, to, raw)
}

// exchange sends bytes on a stream of the API, and reads the answer to its end.
func (l *liar) exchange(ctx context.Context, to peer.ID, raw string) (status int, err error) {
	s, err := l.stream(ctx, to, "api/1")
	if err != nil {
		return 0, err
	}
	defer s.Reset()
	defer context.AfterFunc(ctx, func() { _ = s.Reset() })()
	sent := make(chan error, 1)
	go func() { // the answer may come before the request is whole
		_, err := io.WriteString(s, raw)
		sent <- err
	}()
	res, err := http.ReadResponse(bufio.NewReader(s), nil)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return res.StatusCode, err
}

// requests sends each, and counts those that get the status that is due.
func requests(want int, raws ...string) func(context.Context, *liar, int, peer.ID) int {
	return func(ctx context.Context, l *liar, _ int, to peer.ID) (refused int) {
		for _, raw := range raws {
			if status, err := l.exchange(ctx, to, raw); err != nil || status != want {
				return 0
			}
			refused++
		}
		return refused
	}
}

// slowRequests begins as many requests as it may, and goes on byte by byte until
// they are cut off.
func slowRequests(first string) func(context.Context, *liar, int, peer.ID) int {
	return func(ctx context.Context, l *liar, _ int, to peer.ID) (ended int) {
		var open []network.Stream
		for range 16 {
			s, err := l.stream(ctx, to, "api/1")
			if err == nil {
				_, err = io.WriteString(s, first)
			}
			if err != nil {
				return 0
			}
			open = append(open, s)
			go slowly(l, s)
		}
		for _, s := range open {
			if _, err := io.Copy(io.Discard, s); ctx.Err() != nil {
				return 0
			} else if err == nil || ctx.Err() == nil {
				ended++
			}
		}
		return ended
	}
}

// anothersLogs asks for what only the owner of an instance may see.
func anothersLogs(ctx context.Context, l *liar, n int, to peer.ID) int {
	base := "/v1/instances/" + l.prey.victim
	return requests(http.StatusForbidden, get(base+"/logs"), get(base+"/secrets"), get("/v1/events?instance="+l.prey.victim))(ctx, l, n, to)
}

// manyStreams holds more streams of the API than there are for one peer.
func manyStreams(ctx context.Context, l *liar, _ int, to peer.ID) (sent int) {
	for range 64 {
		s, err := l.stream(ctx, to, "api/1")
		if err == nil {
			_, err = io.WriteString(s, "GET ")
		}
		if err == nil {
			sent++
		}
	}
	wait(ctx, time.Second) // meanwhile others ask
	return sent
}

// anothersGuest asks for the ports and a shell of somebody else's instance.
func anothersGuest(ctx context.Context, l *liar, n int, to peer.ID) int {
	proxy := fmt.Sprintf(`{"instance":%q,"slot":0,"port":22}`+"\n", l.prey.victim)
	exec := fmt.Sprintf(`{"instance":%q,"slot":0,"exec":{"argv":["sh"]}}`+"\n", l.prey.victim)
	return l.header(ctx, to, "proxy/1", proxy) + l.header(ctx, to, "exec/1", exec)
}

func guestHeaders(header string) func(context.Context, *liar, int, peer.ID) int {
	return func(ctx context.Context, l *liar, _ int, to peer.ID) int {
		return l.header(ctx, to, "proxy/1", header) + l.header(ctx, to, "exec/1", header)
	}
}

// header opens a stream to a guest, and says 1 when it is refused.
func (l *liar) header(ctx context.Context, to peer.ID, name, header string) int {
	s, err := l.stream(ctx, to, name)
	if err != nil {
		return 0
	}
	defer s.Reset()
	if _, err := io.WriteString(s, header); err != nil {
		return 0
	}
	answer, err := bufio.NewReader(s).ReadString('\n')
	if err != nil || !strings.Contains(answer, `"ok":false`) {
		return 0
	}
	return 1
}
