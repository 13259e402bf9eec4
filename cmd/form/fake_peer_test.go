package main

import (
	"context"
	"net"
	"net/http"
	"sync"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/p2p"
)

// openGate lets everybody in.
type openGate struct{}

func (openGate) Hello(peer.ID) ([]byte, error)                        { return stmt.EncodeHello(stmt.Hello{}) }
func (openGate) Admit(context.Context, peer.ID, []byte) (bool, error) { return false, nil }
func (openGate) Gone(peer.ID)                                         {}

// oneConn is a listener of one connection, which ends with it.
type oneConn struct {
	net.Conn
	once   sync.Once
	given  bool
	closed chan struct{}
}

func (o *oneConn) Accept() (net.Conn, error) {
	if !o.given {
		o.given = true
		return o, nil
	}
	<-o.closed
	return nil, net.ErrClosed
}

func (o *oneConn) Close() (err error) {
	o.once.Do(func() {
		err = o.Conn.Close()
		close(o.closed)
	})
	return err
}

func (o *oneConn) Addr() net.Addr { return o.LocalAddr() }

// listen gives the daemon a libp2p node, which serves what more says
// beside the API.
func (d *daemon) listen(t *testing.T, more ...func(*p2p.Node)) {
	t.Helper()
	n, err := p2p.New(p2p.Config{Key: testKey(9), Network: testNet.String(), Listen: []string{"/ip4/" + d.at() + "/tcp/0"}, Admission: openGate{}})
	if err != nil {
		t.Fatal(err)
	}
	n.Handle(api.Proto, func(_ context.Context, _ peer.ID, c net.Conn) {
		srv := &http.Server{Handler: d.handler}
		_ = srv.Serve(&oneConn{Conn: c, closed: make(chan struct{})}) // ends with the stream
	})
	for _, f := range more {
		f(n)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	<-n.Ready()
	d.addrs = n.Addrs()
}
