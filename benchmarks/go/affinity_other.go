//go:build !linux

package main

func besideServer() {}
