package wire

// What the tests look at besides. They are another package, since a request is written by policy/boundary.
var Exits, Quote = exits, quote

const MaxKeys = maxKeys
