// Package privops holds the privileged operations of bindgate-helper: giving privilege up, pinning sources, making mountpoints, attaching, detaching, local volumes. Every privileged system call is here or in
// package namespace. Nothing here reads a configuration file or decides who may ask; it is told, and holds what it is told against what the kernel says.
//
// All of it runs on one locked operating system thread, since namespaces, file system ids and capabilities belong to a thread.
package privops
