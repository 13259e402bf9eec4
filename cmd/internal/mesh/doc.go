// Package mesh turns what is known into what the parts of a mesh are told: pure
// functions of a View, for a node and for a device.
package mesh
