package main

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
)

// yield: n goroutines give way in a loop. ../bench_switch.py
func yield(r *Round) {
	var wg sync.WaitGroup
	each := r.ops / r.n
	r.ops = each * r.n
	wg.Add(r.n)
	r.Start()
	for i := 0; i < r.n; i++ {
		go func() {
			for j := 0; j < each; j++ {
				runtime.Gosched()
			}
			wg.Done()
		}()
	}
	wg.Wait()
	r.Stop()
}

// spawnJoin: one goroutine at a time, waited for by the cheapest means Go has, a channel. ../bench_spawn.py
func spawnJoin(r *Round) {
	done := make(chan struct{})
	r.Start()
	for i := 0; i < r.ops; i++ {
		go func() { done <- struct{}{} }()
		<-done
	}
	r.Stop()
}

// spawnBurst: all goroutines at once, then wait for the last.
func spawnBurst(r *Round) {
	var wg sync.WaitGroup
	r.Start()
	wg.Add(r.ops)
	for i := 0; i < r.ops; i++ {
		go wg.Done()
	}
	wg.Wait()
	r.Stop()
}

// roundTrip: a value there and one back. ../bench_chan.py
func roundTrip(r *Round) {
	there, back := make(chan int), make(chan int)
	go func() {
		for v := range there {
			back <- v
		}
	}()
	r.Start()
	for i := 0; i < r.ops; i++ {
		there <- i
		<-back
	}
	r.Stop()
	close(there)
}

// buffered: a stream through a channel of capacity n.
func buffered(r *Round) {
	stream := make(chan int, r.n)
	go func() {
		for i := 0; i < r.ops; i++ {
			stream <- i
		}
		close(stream)
	}()
	r.Start()
	for range stream {
	}
	r.Stop()
}

// selectOf: whichever of n unbuffered channels has a value. ../bench_select.py
func selectOf(r *Round) {
	each := r.ops / r.n
	r.ops = each * r.n
	c := make([]chan int, r.n)
	for i := range c {
		c[i] = make(chan int)
		go func(c chan int) {
			for j := 0; j < each; j++ {
				c <- j
			}
		}(c[i])
	}
	r.Start()
	if r.n == 2 {
		for i := 0; i < r.ops; i++ {
			select {
			case <-c[0]:
			case <-c[1]:
			}
		}
	} else {
		for i := 0; i < r.ops; i++ {
			select {
			case <-c[0]:
			case <-c[1]:
			case <-c[2]:
			case <-c[3]:
			}
		}
	}
	r.Stop()
}

// mutex: lock and unlock by one goroutine alone. ../bench_sync.py
func mutex(r *Round) {
	var mu sync.Mutex
	r.Start()
	for i := 0; i < r.ops; i++ {
		mu.Lock()
		mu.Unlock()
	}
	r.Stop()
}

// contended: n goroutines that give way while they hold the lock.
func contended(r *Round) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	each := r.ops / r.n
	r.ops = each * r.n
	wg.Add(r.n)
	r.Start()
	for i := 0; i < r.n; i++ {
		go func() {
			for j := 0; j < each; j++ {
				mu.Lock()
				runtime.Gosched()
				mu.Unlock()
			}
			wg.Done()
		}()
	}
	wg.Wait()
	r.Stop()
}

// parked: ops goroutines wait on one channel, n calls deep, until it is closed. ../bench_memory.py
func parked(r *Round) {
	var here, gone sync.WaitGroup
	gate := make(chan struct{})
	here.Add(r.ops)
	gone.Add(r.ops)
	rss, pte := resident()
	r.Start()
	for i := 0; i < r.ops; i++ {
		go func() {
			wait(r.n, &here, gate)
			gone.Done()
		}()
	}
	here.Wait()
	runtime.Gosched()
	r.figures["create_s"] = time.Since(r.begin).Seconds()
	rss2, pte2 := resident()
	release := time.Now()
	close(gate)
	gone.Wait()
	r.figures["release_s"] = time.Since(release).Seconds()
	r.Stop()
	r.figures["rss"] = (rss2 - rss) / float64(r.ops)
	r.figures["pte"] = (pte2 - pte) / float64(r.ops)
	r.figures["rss_gb"] = (rss2 - rss) / 1e9
}

//go:noinline
func wait(depth int, here *sync.WaitGroup, gate chan struct{}) {
	if depth > 0 {
		wait(depth-1, here, gate)
		return
	}
	here.Done()
	<-gate
}

// resident: this process's resident bytes and the bytes of its page tables.
func resident() (rss, pte float64) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return
	}
	for _, line := range strings.Split(string(status), "\n") {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		kib, _ := strconv.ParseFloat(words[1], 64)
		switch words[0] {
		case "VmRSS:":
			rss = kib * 1024
		case "VmPTE:":
			pte = kib * 1024
		}
	}
	return
}

// sleepers: ops goroutines sleep one second. ../bench_timers.py
func sleepers(r *Round) {
	var wg sync.WaitGroup
	r.Start()
	wg.Add(r.ops)
	for i := 0; i < r.ops; i++ {
		go func() {
			time.Sleep(time.Second)
			wg.Done()
		}()
	}
	wg.Wait()
	r.Stop()
	r.figures["late_s"] = (r.wall - time.Second).Seconds()
	r.figures["cpu_s"] = r.cpu.Seconds()
}
