// Command lab-service is the service that runs on every host of a lab: it tells its version over HTTP. Its version is
// not in the program but behind it, at the end of its own file, read once at start: replacing the file changes what the
// next process tells, never what this one does.
//
// Called as patch-restart-processes it is the helper of patch scripts: it has the host's init restart the services that
// it is given, and returns when their new processes are ready.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

func main() {
	var err error
	if filepath.Base(os.Args[0]) == "patch-restart-processes" {
		err = restart(os.Args[1:])
	} else {
		err = tell()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", filepath.Base(os.Args[0]), err)
		os.Exit(1)
	}
}

// trailer is written between the program and its version by the package that carries it, in internal/lab.
const trailer = "\nlab-service version "

// version reads the end of the running program's file.
func version() (string, error) {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	end := make([]byte, min(info.Size(), 256))
	if _, err := f.ReadAt(end, info.Size()-int64(len(end))); err != nil {
		return "", err
	}
	i := bytes.LastIndex(end, []byte(trailer))
	if i < 0 {
		return "", errors.New("this program carries no version; it is installed from its package")
	}
	return strings.TrimSpace(string(end[i+len(trailer):])), nil
}

// tell answers GET / with the version, for ever. It speaks just enough HTTP for that, because the program is copied into
// every root and every version of the package.
func tell() error {
	v, err := version()
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", os.Getenv("LAB_ADDRESS"))
	if err != nil {
		return err
	}
	if fd, err := strconv.Atoi(os.Getenv("LAB_READY_FD")); err == nil {
		ready := os.NewFile(uintptr(fd), "ready")
		if _, err := ready.WriteString("ready\n"); err != nil {
			return err
		}
		if err := ready.Close(); err != nil {
			return err
		}
	}
	fmt.Printf("%s: version %s at %s\n", time.Now().UTC().Format(time.RFC3339), v, l.Addr())
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		if err := answer(conn, v); err != nil {
			fmt.Printf("%s: %v\n", time.Now().UTC().Format(time.RFC3339), err)
		}
	}
}

func answer(conn net.Conn, v string) error {
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	r := bufio.NewReader(io.LimitReader(conn, 16<<10))
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		if strings.TrimSpace(line) == "" {
			break
		}
	}
	body := v + "\n"
	_, err := fmt.Fprintf(conn, "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	return err
}

// initSocket is where the host's init listens.
const initSocket = "/run/init.sock"

func restart(names []string) error {
	if len(names) == 0 {
		return errors.New("name the services to restart")
	}
	for _, name := range names {
		conn, err := net.Dial("unix", initSocket)
		if err != nil {
			return fmt.Errorf("cannot reach the host's init: %w", err)
		}
		var reply struct {
			Error string `json:"error"`
		}
		err = errors.Join(
			json.NewEncoder(conn).Encode(map[string]string{"do": "restart", "name": name}),
			json.NewDecoder(conn).Decode(&reply),
			conn.Close())
		if err != nil {
			return fmt.Errorf("cannot restart %s: %w", name, err)
		}
		if reply.Error != "" {
			return fmt.Errorf("cannot restart %s: %s", name, reply.Error)
		}
		fmt.Printf("%s restarted\n", name)
	}
	return nil
}
