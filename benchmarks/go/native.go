package main

import "sync"

// skynet: a tree of goroutines, ten children each, whose leaves add up their numbers. ../bench_native.py
func skynet(r *Round) {
	out := make(chan int)
	r.Start()
	go skynetNode(out, 0, r.ops)
	sum := <-out
	r.Stop()
	if sum != r.ops/2*(r.ops-1) {
		panic("skynet: wrong sum")
	}
}

func skynetNode(out chan int, num, size int) {
	if size == 1 {
		out <- num
		return
	}
	in := make(chan int)
	for i := 0; i < 10; i++ {
		go skynetNode(in, num+i*(size/10), size/10)
	}
	sum := 0
	for i := 0; i < 10; i++ {
		sum += <-in
	}
	out <- sum
}

// sieve: ops primes, a goroutine for each.
func sieve(r *Round) {
	r.Start()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	ch := make(chan int)
	wg.Add(1)
	go func(out chan int) {
		defer wg.Done()
		for i := 2; ; i++ {
			select {
			case out <- i:
			case <-stop:
				return
			}
		}
	}(ch)
	for i := 0; i < r.ops; i++ {
		prime := <-ch
		out := make(chan int)
		go func(in, out chan int) {
			for i := range in {
				if i%prime != 0 {
					out <- i
				}
			}
		}(ch, out)
		ch = out
	}
	r.Stop()
	close(stop)
	wg.Wait()
}

func burn(seed uint64, n int) uint64 {
	x := seed | 1
	for i := 0; i < n; i++ {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	return x
}

// cpu: n goroutines, ops steps each.
func cpu(r *Round) {
	var wg sync.WaitGroup
	out := make([]uint64, r.n)
	r.Start()
	for i := 0; i < r.n; i++ {
		wg.Add(1)
		go func() {
			out[i] = burn(uint64(i), r.ops)
			wg.Done()
		}()
	}
	wg.Wait()
	r.Stop()
}

// sum: ops chunks of work go to n workers by one channel, the results come back by another.
func sum(r *Round) {
	in, out := make(chan int, 64), make(chan uint64, 64)
	var wg sync.WaitGroup
	r.Start()
	wg.Add(1 + r.n)
	go func() {
		for i := 0; i < r.ops; i++ {
			in <- i
		}
		close(in)
		wg.Done()
	}()
	for i := 0; i < r.n; i++ {
		go func() {
			for chunk := range in {
				out <- burn(uint64(chunk), 1000)
			}
			wg.Done()
		}()
	}
	total := uint64(0)
	for i := 0; i < r.ops; i++ {
		total += <-out
	}
	wg.Wait()
	r.Stop()
	if total == 0 {
		panic("sum")
	}
}

func init() {
	for name, shape := range map[string]func(*Round){
		"yield_2": yield, "yield_1000": yield, "spawn_join": spawnJoin, "spawn_burst": spawnBurst, "spawn_cold": spawnBurst,
		"round_trip": roundTrip, "buffered": buffered, "mutex": mutex, "contended": contended, "skynet": skynet,
		"sieve": sieve, "cpu_1": cpu, "cpu_2": cpu, "sum": sum, "parked": parked,
	} {
		shapes["native_"+name] = shape
	}
}
