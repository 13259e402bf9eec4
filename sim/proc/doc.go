// Package proc runs a scenario on real daemons: formd processes of a binary that it
// is given, each in a network namespace of its own, with the driver that starts no VM
// or (tier vm) with QEMU, with state on a small file system of its own, in real time.
// Between them is a bridge of the kernel's, or where frames are to take time, to come
// twice or to be damaged a wire of this package's. So what processes, sockets, file
// systems and the kernel really do is seen: kill -9 between two writes, a disk without
// room, a firewall that drops, a line around the world.
//
// # Guarantees
//
//   - It leaves nothing: no process, network namespace, mount, socket or file, however
//     the run ends. What a run that was itself killed has left is removed by the next
//     one; everything has a name, or a word in its environment, that says whose it is.
//
//   - Nothing leaves the namespaces, and nothing of the machine's own network,
//     firewall or configuration is read or changed.
//
//   - What the tier cannot do is refused by name before anything is begun ([Refuse]).
//
// # Non-guarantees
//
//   - The same seed gives the same schedule and not the same run: time is real, and
//     so are processes. There is no hash of events.
//
//   - A machine that is too busy is not told from a daemon that is too slow.
//
//   - What was written is kept, synced or not, when a daemon is killed and when all
//     of a node is. What a power cut loses is package des's to show.
//
//   - A wire is a part of this process: on a machine that is too busy frames take longer
//     than they are to.
//
//   - A real machine is seen to run by what its entrypoint writes: not before it has
//     booted.
//
// It needs Linux, root, ip and nft, and /dev/net/tun for a wire.
package proc
