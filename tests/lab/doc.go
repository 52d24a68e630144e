// Package lab sets up what tests/integration and tests/attack look at: a machine
// with the real agent and the real loader, each a process under a user of its own,
// on a kernel that is made of files; a real service with its publisher; and a
// front that stands between the two and changes what passes.
//
// A test binary that uses it hands its TestMain over to [Main], which builds the
// programs once. It has to be in a folder two below the root of the tree.
package lab
