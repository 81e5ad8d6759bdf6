// Package firewall closes what the mesh opens to everybody but its members. The rules
// are in chains of its own; nobody else's rule is touched.
package firewall
