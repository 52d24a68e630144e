package server_test

import (
	"testing"
	"testing/synctest"
	"time"

	"livepatch/loader/internal/server"
)

func TestIdleLeavesAfterTheLastRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var left time.Duration
		begin := server.NewIdle(30*time.Second, func() { left = time.Since(start) })
		time.Sleep(20 * time.Second)
		first, second := begin(), begin() // at 20 s
		time.Sleep(time.Minute)
		first() // at 80 s
		time.Sleep(time.Minute)
		second() // at 140 s
		time.Sleep(time.Hour)
		synctest.Wait()
		if want := 170 * time.Second; left != want {
			t.Errorf("left after %v, want %v", left, want)
		}
	})
}

func TestIdleLeavesIfNobodyEverCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		left := false
		server.NewIdle(30*time.Second, func() { left = true })
		time.Sleep(31 * time.Second)
		synctest.Wait()
		if !left {
			t.Error("still there after 31 s")
		}
	})
}
