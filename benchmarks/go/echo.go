package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

const messageSize = 64

// echoServer: a goroutine a connection answers n clients, who are in another process. ../bench_echo.py
func echoServer(r *Round) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				buf := make([]byte, 4096)
				for {
					n, err := conn.Read(buf)
					if n > 0 {
						if _, err := conn.Write(buf[:n]); err != nil {
							break
						}
					}
					if err != nil {
						break
					}
				}
				conn.Close()
			}()
		}
	}()
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	r.Start()
	out, err := exec.Command(self, "load", listener.Addr().String(), strconv.Itoa(r.n), strconv.Itoa(r.ops)).Output()
	r.Stop()
	if err != nil {
		panic(err)
	}
	listener.Close()
	wall, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	if err != nil {
		panic(err)
	}
	r.wall = time.Duration(wall)
}

// load ADDRESS N OPS: n clients write a message and wait for it to come back; prints the ns that ops messages took.
func load(words []string) error {
	n, err := strconv.Atoi(words[1])
	if err != nil {
		return err
	}
	ops, err := strconv.Atoi(words[2])
	if err != nil {
		return err
	}
	conns := make([]*net.TCPConn, n)
	for i := range conns {
		conn, err := net.Dial("tcp", words[0])
		if err != nil {
			return err
		}
		conns[i] = conn.(*net.TCPConn)
		if err = trip(conn, 1); err != nil { // the server has it
			return err
		}
	}
	begin := time.Now()
	err = trips(conns, ops/n) // load_linux.go, load_other.go
	fmt.Println(time.Since(begin).Nanoseconds())
	for _, conn := range conns {
		conn.Close()
	}
	return err
}

func trip(conn net.Conn, times int) error {
	message, answer := make([]byte, messageSize), make([]byte, messageSize)
	for i := 0; i < times; i++ {
		message[0] = byte(i)
		if _, err := conn.Write(message); err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, answer); err != nil {
			return err
		}
		if answer[0] != byte(i) {
			return errMixedUp
		}
	}
	return nil
}

var errMixedUp = errors.New("another message came back")
