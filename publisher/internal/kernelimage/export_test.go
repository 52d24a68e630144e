package kernelimage

// ReadLimited is Read with a limit that a test can reach.
var ReadLimited = read
