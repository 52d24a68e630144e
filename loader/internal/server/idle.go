package server

import (
	"sync"
	"time"
)

// NewIdle returns a function that marks the beginning of a request and returns
// another for its end. Once no request has been under way for a while, leave is
// called, so that there is no root process at rest; the time begins at once.
func NewIdle(after time.Duration, leave func()) (begin func() (end func())) {
	var mu sync.Mutex
	under := 0
	timer := time.AfterFunc(after, leave)
	return func() func() {
		mu.Lock()
		defer mu.Unlock()
		under++
		timer.Stop()
		return func() {
			mu.Lock()
			defer mu.Unlock()
			if under--; under == 0 {
				timer.Reset(after)
			}
		}
	}
}
