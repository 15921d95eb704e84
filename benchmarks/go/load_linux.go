package main

import (
	"io"
	"net"
	"runtime"
	"syscall"
	"unsafe"
)

// client is a connection with one message under way.
type client struct {
	fd      int
	done    int // trips made
	got     int // bytes of the answer
	message [messageSize]byte
	answer  [messageSize]byte
}

// trips lets every connection make its trips: one thread, an epoll set, two system calls a message.  Goroutines would need
// three and the scheduler, which is as much as the server has to do: the clients would be half of what is measured.
func trips(conns []*net.TCPConn, times int) error {
	runtime.LockOSThread()
	epfd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	defer syscall.Close(epfd)
	clients := make([]client, len(conns))
	for i, conn := range conns {
		c := &clients[i]
		raw, err := conn.SyscallConn()
		if err != nil {
			return err
		}
		if err = raw.Control(func(fd uintptr) { c.fd = int(fd) }); err != nil {
			return err
		}
		ev := syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(i)}
		if err = syscall.EpollCtl(epfd, syscall.EPOLL_CTL_ADD, c.fd, &ev); err != nil {
			return err
		}
	}
	if times == 0 {
		return nil
	}
	for i := range clients {
		if err = clients[i].write(); err != nil {
			return err
		}
	}
	events := make([]syscall.EpollEvent, len(clients))
	for left := len(clients); left > 0; {
		n, err := syscall.EpollWait(epfd, events, -1)
		if err != nil && err != syscall.EINTR {
			return err
		}
		for i := 0; i < n; i++ {
			c := &clients[events[i].Fd]
			if whole, err := c.read(); err != nil {
				return err
			} else if !whole {
				continue
			}
			if c.done++; c.done == times {
				left--
			} else if err = c.write(); err != nil {
				return err
			}
		}
	}
	runtime.KeepAlive(conns)
	return nil
}

func (c *client) write() error {
	c.message[0] = byte(c.done)
	n, _, e := syscall.RawSyscall(syscall.SYS_WRITE, uintptr(c.fd), uintptr(unsafe.Pointer(&c.message)), messageSize)
	if e != 0 {
		return e
	}
	if n != messageSize { // the only message of its connection always has room
		return io.ErrShortWrite
	}
	return nil
}

// read returns whether the answer is complete.
func (c *client) read() (bool, error) {
	n, _, e := syscall.RawSyscall(syscall.SYS_READ, uintptr(c.fd), uintptr(unsafe.Pointer(&c.answer[c.got])),
		uintptr(messageSize-c.got))
	if e == syscall.EAGAIN || e == syscall.EINTR {
		return false, nil
	}
	if e != 0 {
		return false, e
	}
	if n == 0 {
		return false, io.ErrUnexpectedEOF
	}
	if c.got += int(n); c.got < messageSize {
		return false, nil
	}
	c.got = 0
	if c.answer[0] != byte(c.done) {
		return false, errMixedUp
	}
	return true, nil
}
