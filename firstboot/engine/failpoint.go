//go:build !failpoints

package engine

// failpoint marks a boundary at which a test kills this program; see
// failpoint_on.go. In what is released there is nothing here.
func failpoint(string, boundary) {}
