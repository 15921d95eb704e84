// Command twin runs the shapes of ../bench_*.py as Go programs.
//
//	twin SHAPE OPS [N]   runs one round and prints its figures as JSON
//	twin load ADDR N OPS is the clients of bench_echo.py
//	twin serve           reads "SHAPE OPS N" lines and answers each with a line of JSON
//
// A shape fills in a Round: wall and CPU time of the part between Start and Stop, and figures of its own.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Round is one run of one shape: ops operations on n tasks, channels or whatever the shape counts.
type Round struct {
	ops, n  int
	wall    time.Duration
	cpu     time.Duration
	figures map[string]float64
	begin   time.Time
}

func (r *Round) Start() {
	r.cpu = processTime()
	r.begin = time.Now()
}

func (r *Round) Stop() {
	r.wall = time.Since(r.begin)
	r.cpu = processTime() - r.cpu
}

func processTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

var shapes = map[string]func(*Round){
	"yield_2":     yield,
	"yield_1000":  yield,
	"spawn_join":  spawnJoin,
	"spawn_burst": spawnBurst,
	"spawn_cold":  spawnBurst,
	"round_trip":  roundTrip,
	"buffered":    buffered,
	"select_2":    selectOf,
	"select_4":    selectOf,
	"mutex":       mutex,
	"contended":   contended,
	"parked":      parked,
	"parked_deep": parked,
	"million":     parked,
	"sleepers":    sleepers,
	"echo_100":    echoServer,
}

func run(shape string, ops, n int) (map[string]float64, error) {
	work, ok := shapes[shape]
	if !ok {
		return nil, fmt.Errorf("no shape %q", shape)
	}
	r := &Round{ops: ops, n: n, figures: map[string]float64{}}
	runtime.GC()
	work(r)
	r.figures["ops"] = float64(r.ops)
	r.figures["ns"] = float64(r.wall.Nanoseconds()) / float64(r.ops)
	r.figures["cpu_ns"] = float64(r.cpu.Nanoseconds()) / float64(r.ops)
	return r.figures, nil
}

func serve() error {
	answers := json.NewEncoder(os.Stdout)
	answers.Encode(map[string]string{"version": strings.TrimPrefix(runtime.Version(), "go")})
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		figures, err := parseAndRun(strings.Fields(lines.Text()))
		if err != nil {
			return err
		}
		answers.Encode(figures)
	}
	return lines.Err()
}

func parseAndRun(words []string) (map[string]float64, error) {
	if len(words) < 2 {
		return nil, fmt.Errorf("usage: twin serve | twin SHAPE OPS [N]")
	}
	ops, err := strconv.Atoi(words[1])
	if err != nil {
		return nil, err
	}
	n := 0
	if len(words) > 2 {
		if n, err = strconv.Atoi(words[2]); err != nil {
			return nil, err
		}
	}
	return run(words[0], ops, n)
}

func main() {
	var err error
	if len(os.Args) == 2 && os.Args[1] == "serve" {
		err = serve()
	} else if len(os.Args) == 5 && os.Args[1] == "load" {
		besideServer()
		err = load(os.Args[2:])
	} else {
		var figures map[string]float64
		if figures, err = parseAndRun(os.Args[1:]); err == nil {
			err = json.NewEncoder(os.Stdout).Encode(figures)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "twin:", err)
		os.Exit(1)
	}
}
