package main

import (
	"os"
	"runtime"
	"syscall"
	"unsafe"
)

// besideServer starts this program again on all CPUs but the highest, which the server is pinned to.
func besideServer() {
	const done = "GMP_BENCH_BESIDE"
	var mask [16]uint64
	if os.Getenv(done) != "" {
		return
	}
	runtime.LockOSThread()
	for i := range mask {
		mask[i] = ^uint64(0)
	}
	set := func() {
		syscall.RawSyscall(syscall.SYS_SCHED_SETAFFINITY, 0, unsafe.Sizeof(mask), uintptr(unsafe.Pointer(&mask)))
	}
	set() // all there are
	syscall.RawSyscall(syscall.SYS_SCHED_GETAFFINITY, 0, unsafe.Sizeof(mask), uintptr(unsafe.Pointer(&mask)))
	first, last := -1, -1
	for cpu := 0; cpu < 64*len(mask); cpu++ {
		if mask[cpu/64]&(1<<(cpu%64)) != 0 {
			if first < 0 {
				first = cpu
			}
			last = cpu
		}
	}
	if first != last {
		mask[last/64] &^= 1 << (last % 64)
		set()
	}
	self, err := os.Executable()
	if err == nil {
		syscall.Exec(self, os.Args, append(os.Environ(), done+"=1"))
	}
}
