// The Greeter and the streams of benchmarks/grpc_report.py on grpc-go.  Prints its port, serves until its standard input ends.
//
//	greeter DELAY_IN_SECONDS [FOLDER]
//
// With a folder that has cert.pem and key.pem it speaks TLS.
//
// HelloRequest and HelloReply have one field, a string numbered 1, and so has google.protobuf.StringValue: no generated code is needed.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

var delay time.Duration

func sayHello(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	request := new(wrapperspb.StringValue)
	if err := decode(request); err != nil {
		return nil, err
	}
	if delay != 0 {
		time.Sleep(delay)
	}
	return &wrapperspb.StringValue{Value: "Hello, " + request.Value + "!"}, nil
}

func echo(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	message := new(wrapperspb.BytesValue)
	if err := decode(message); err != nil {
		return nil, err
	}
	return message, nil
}

func count(_ any, stream grpc.ServerStream) error {
	request := new(wrapperspb.StringValue)
	if err := stream.RecvMsg(request); err != nil {
		return err
	}
	n, err := strconv.Atoi(request.Value)
	if err != nil {
		return err
	}
	reply := &wrapperspb.StringValue{Value: "0123456789abcdef"}
	for range n {
		if err := stream.SendMsg(reply); err != nil {
			return err
		}
	}
	return nil
}

func pingPong(_ any, stream grpc.ServerStream) error {
	for {
		message := new(wrapperspb.StringValue)
		if err := stream.RecvMsg(message); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := stream.SendMsg(message); err != nil {
			return err
		}
	}
}

func main() {
	seconds, err := strconv.ParseFloat(os.Args[1], 64)
	if err != nil {
		panic(err)
	}
	delay = time.Duration(seconds * float64(time.Second))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	options := []grpc.ServerOption{grpc.MaxRecvMsgSize(64 << 20)}
	if len(os.Args) > 2 {
		folder := os.Args[2]
		tls, err := credentials.NewServerTLSFromFile(filepath.Join(folder, "cert.pem"), filepath.Join(folder, "key.pem"))
		if err != nil {
			panic(err)
		}
		options = append(options, grpc.Creds(tls))
	}
	server := grpc.NewServer(options...)
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "helloworld.Greeter",
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "SayHello", Handler: sayHello}},
	}, nil)
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "bench.Streams",
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Echo", Handler: echo}},
		Streams: []grpc.StreamDesc{
			{StreamName: "Count", Handler: count, ServerStreams: true},
			{StreamName: "PingPong", Handler: pingPong, ServerStreams: true, ClientStreams: true},
		},
	}, nil)
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	if err := server.Serve(listener); err != nil {
		panic(err)
	}
}
