//go:build !linux

package main

import (
	"net"
	"sync"
)

// trips lets every connection make its trips, a goroutine each.
func trips(conns []*net.TCPConn, times int) error {
	var wg sync.WaitGroup
	failed := make(chan error, len(conns))
	for _, conn := range conns {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := trip(conn, times); err != nil {
				failed <- err
			}
		}()
	}
	wg.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}
