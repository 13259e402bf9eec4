package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// stateWorld makes the statements of a private network. Keys come from numbers,
// so that a child process has the same ones.
type stateWorld struct {
	net  stmt.NetworkID
	root ed25519.PrivateKey
}

const (
	stateInstances = 10_000
	statePerOwner  = 100
	stateNodes     = 100
)

func newStateWorld() *stateWorld {
	root := stateKey("root", 0)
	return &stateWorld{net: stmt.NewNetworkID("bench", stmt.KeyOf(root)), root: root}
}

func stateKey(what string, n int) ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	binary.BigEndian.PutUint32(seed, uint32(n))
	copy(seed[4:], what)
	return ed25519.NewKeyFromSeed(seed)
}

// config is that of a replica of node n in dir, as formd has it.
func (w *stateWorld) config(n int, dir string) crdt.ReplicaConfig {
	return crdt.ReplicaConfig{
		Dir: dir, Key: stateKey("node", n), Network: w.net, Root: stmt.KeyOf(w.root), RootKey: w.root, Engine: newSpecEngine(),
	}
}

func (w *stateWorld) admit(key ed25519.PrivateKey, role stmt.Role) ([]byte, error) {
	return stmt.SignMember(w.root, w.net, stmt.MemberBody{Key: stmt.KeyOf(key), Role: role}, nil, 0, 0)
}

func (w *stateWorld) admitAll(owners, nodes int) (raws [][]byte, err error) {
	for i := range owners {
		raw, err := w.admit(stateKey("owner", i), stmt.RoleOwner)
		if err != nil {
			return nil, err
		}
		raws = append(raws, raw)
	}
	for i := range nodes {
		raw, err := w.admit(stateKey("node", i), stmt.RoleNode)
		if err != nil {
			return nil, err
		}
		raws = append(raws, raw)
	}
	return raws, nil
}

// instances makes n instances of n/statePerOwner owners and returns the
// statements that a replica holds of them.
func (w *stateWorld) instances(n int) (raws [][]byte, ids []string, err error) {
	for o := range n / statePerOwner {
		key := stateKey("owner", o)
		a, err := crdt.NewAuthor(key, w.net, nil)
		if err != nil {
			return nil, nil, err
		}
		held := crdt.NewState(w.net, stmt.Key{}, crdt.NewModel())
		for i := range statePerOwner {
			id, made, err := a.Create(crdt.Spec{
				Name: fmt.Sprintf("app-%d", i), Pack: benchPackCID, Replicas: 3, VCPU: 2, MemoryBytes: 1 << 30, DiskBytes: 5 << 30,
				Env: map[string]string{"PORT": "8080", "MODE": "production"}, Expose: []string{"8080/tcp"},
			})
			if err != nil {
				return nil, nil, err
			}
			for _, raw := range made {
				if _, err := held.Apply(raw, time.Time{}); err != nil {
					return nil, nil, err
				}
			}
			ids = append(ids, id)
		}
		raws = append(raws, held.OwnerStatements(stmt.KeyOf(key))...)
	}
	return raws, ids, nil
}

// benchPackCID is a CID of nothing.
const benchPackCID = "bafyreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"

// claims has stateNodes nodes publish their registers and each of them perNode
// claims on the instances, and returns the statements.
func (w *stateWorld) claims(ctx context.Context, scratch string, members [][]byte, ids []string, perNode int) (raws [][]byte, err error) {
	for n := range stateNodes {
		dir := filepath.Join(scratch, fmt.Sprint("claims-", n))
		r, err := crdt.Open(w.config(n, dir))
		if err != nil {
			return nil, err
		}
		var claims []crdt.Claim
		for i := range perNode {
			at := n*perNode + i
			claims = append(claims, crdt.Claim{
				Instance: ids[at%len(ids)], Owner: stmt.KeyOf(stateKey("owner", at%len(ids)/statePerOwner)), Slot: at / len(ids),
				Generation: 1, Phase: crdt.ClaimRunning, Ready: true, Pack: benchPackCID,
				Address: "10.128.3.7", Address6: "fd5c:8a1e:77aa:1::7", MeshKey: "tLsjDDEQhzGYcjLQDnCuFsN2mcyBCEJN0gZrWyMqZkE=",
				SSHHostKey: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl",
				Endpoint:   "192.0.2.7:51820", Accel: "kvm", SpecGeneration: 1, StartedAt: 1_790_000_000, ReadyAt: 1_790_000_009,
			})
		}
		_, err = r.Submit(ctx, members...)
		if err == nil {
			err = r.SetNode(ctx, crdt.Node{
				Addrs: []string{"/ip4/192.0.2.7/udp/51820/quic-v1/p2p/12D3KooWGRUVh9JFZSNn8Wq3nqDmYYsCyXYB6UG6HzYpDLFzQjHj"},
				Total: crdt.Resources{CPUs: 64, Memory: 256 << 30, Disk: 4 << 40}, Region: "eu-1", Version: "1.0.0", Accel: "kvm",
			})
		}
		if err == nil {
			err = r.SetClaims(ctx, claims)
		}
		if err = errors.Join(err, r.Close()); err != nil {
			return nil, err
		}
		all, err := logStatements(dir)
		if err != nil {
			return nil, err
		}
		raws = append(raws, all[len(members):]...)
		if err := os.RemoveAll(dir); err != nil {
			return nil, err
		}
	}
	return raws, nil
}

// The framing of a state log (docs/wire.md, Log).
const (
	stateLogName  = "state.log"
	stateLogMagic = "formation/log/1\n"
)

// writeLog writes a log of these statements.
func writeLog(dir string, raws [][]byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	b := []byte(stateLogMagic)
	for _, raw := range raws {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(raw)))
		b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(raw, crc32.MakeTable(crc32.Castagnoli)))
		b = append(b, raw...)
	}
	return os.WriteFile(filepath.Join(dir, stateLogName), b, 0o600)
}

// logStatements returns the statements of a log.
func logStatements(dir string) (raws [][]byte, err error) {
	b, err := os.ReadFile(filepath.Join(dir, stateLogName))
	if err != nil {
		return nil, err
	}
	b, ok := bytes.CutPrefix(b, []byte(stateLogMagic))
	for ok && len(b) > 8 {
		n := int(binary.LittleEndian.Uint32(b))
		if ok = n <= len(b)-8; ok {
			raws, b = append(raws, b[8:8+n:8+n]), b[8+n:]
		}
	}
	if !ok || len(b) > 0 {
		return nil, fmt.Errorf("%s is no whole log", dir)
	}
	return raws, nil
}

func totalBytes(raws [][]byte) (n int) {
	for _, raw := range raws {
		n += len(raw)
	}
	return n
}
