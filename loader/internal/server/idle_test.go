package server_test

import (
	"testing"
	"testing/synctest"
	"time"

	"livepatch/loader/internal/server"
)

func TestIdleLeavesAfterTheLastConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var left time.Duration
		s := &server.Server{Busy: make(chan struct{}, 1)}
		busy := s.Idle(30*time.Second, func() { left = time.Since(start) })
		time.Sleep(20 * time.Second)
		busy() // at 20 s
		time.Sleep(25 * time.Second)
		busy()               // at 45 s
		s.Busy <- struct{}{} // a change begins
		time.Sleep(time.Minute)
		time.Sleep(5 * time.Second)
		<-s.Busy // at 110 s; looked at every 30 s: at 75, 105 and 135
		time.Sleep(time.Hour)
		synctest.Wait()
		if want := 135 * time.Second; left != want {
			t.Errorf("left after %v, want %v", left, want)
		}
		if len(s.Busy) != 1 {
			t.Error("a change could begin while the loader leaves")
		}
	})
}

func TestIdleLeavesIfNobodyEverCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		left := false
		s := &server.Server{Busy: make(chan struct{}, 1)}
		s.Idle(30*time.Second, func() { left = true })
		time.Sleep(31 * time.Second)
		synctest.Wait()
		if !left {
			t.Error("still there after 31 s")
		}
	})
}
