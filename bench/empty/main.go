// empty is a Go program that does nothing: what any helper in Go pays before its first instruction and after its last.
package main

func main() {}
