// Package ingress serves to strangers what replicas offer: HTTP sites by their
// names, and plain TCP and UDP ports.
//
// It is told by [Ingress.Set] what to serve, whole and as often as one likes, and
// reaches replicas through a [Dialer]; what they are replicas of it does not know.
//
// Guarantees: a request whose repetition does no harm (RFC 9110, 9.2.2: no body,
// or none of it was sent) is tried on up to three replicas before it fails, also
// when the first breaks off an answer of at most [repeatable] bytes that told its
// length; any other when nothing of it was sent. A replica that fails is left out
// until it accepts a connection again. One that is not listed any more gets
// nothing new, and what runs through it has [Limits.Drain] to end; one that is
// gone is cut at once. A replica is told who the client was by X-Forwarded-For,
// and never what the client says of that. Connections are bounded, in all and of
// one client (of IPv6 a /64), and so is everything that one can make wait.
//
// Not guaranteed: that an answer is whole which was begun before its replica
// died, when it is longer or does not tell its length; such a one breaks off.
// That datagrams arrive.
package ingress
