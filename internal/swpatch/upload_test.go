package swpatch

import (
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

// accept answers an upload with the name and size of what came; it does not care how the client cut the stream.
func accept(t *testing.T) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		m, err := r.MultipartReader()
		if err != nil {
			t.Error(err)
			return
		}
		part, err := m.NextPart()
		if err != nil {
			t.Error(err)
			return
		}
		n, err := io.Copy(io.Discard, part)
		if err != nil {
			t.Error(err)
		}
		// FileName takes the folders off; the name as typed is in the header.
		_, params, err := mime.ParseMediaType(part.Header.Get("Content-Disposition"))
		if err != nil {
			t.Error(err)
		}
		name := params["filename"]
		if strings.Contains(name, "bad") {
			fmt.Fprintf(w, `{"info": "", "warning": "", "error": "Patch validation failed for %s\n"}`, name)
			return
		}
		fmt.Fprintf(w, `{"info": "%s: %s %d is now available\n", "warning": "", "error": ""}`, part.FormName(), name, n)
	}
}

// folder fills a new working folder with files and a folder called dir with a patch and other things.
func folder(t *testing.T) {
	t.Helper()
	t.Chdir(t.TempDir())
	for _, d := range []string{"dir", "dir/sub", "empty"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, size := range map[string]int{"b.patch": 2, "a.patch": 1 << 20, "bad.patch": 3, "dir/d.patch": 4, "dir/c.patch": 5, "dir/readme.txt": 6, "dir/.hidden.patch": 7, "dir/sub/x.patch": 8} {
		if err := os.WriteFile(filepath.FromSlash(name), make([]byte, size), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestUpload(t *testing.T) {
	folder(t)
	ctl := controller{"POST /v1/upload": accept(t)}
	for _, tt := range []struct {
		name, args string
		want       result
	}{
		{"files go one by one, sorted, under their names as typed", "upload ./b.patch a.patch", result{0,
			"file: ./b.patch 2 is now available\n\nfile: a.patch 1048576 is now available\n\n", ""}},
		{"a refused file fails the run and stops no other", "upload bad.patch a.patch b.patch", result{1,
			"file: a.patch 1048576 is now available\n\nfile: b.patch 2 is now available\n\nError:\nPatch validation failed for bad.patch\n\n", ""}},
		{"a missing file and a folder fail the run and stop no other", "upload nope.patch dir b.patch", result{1,
			"file: b.patch 2 is now available\n\nError: dir is a directory. Please use upload-dir\nError: File does not exist: nope.patch\n", ""}},
		{"a name like an option follows --", "upload -- --debug", result{1, "Error: File does not exist: --debug\n", ""}},
		{"upload-dir sends the patches of each folder once and prints one answer", "upload-dir dir dir", result{0,
			"file: dir/c.patch 5 is now available\nfile: dir/d.patch 4 is now available\n\n", ""}},
		{"upload-dir without patches", "upload-dir empty", result{1,
			"Error:\nNo patches found: there is no *.patch file directly in empty\n", ""}},
		{"upload-dir of a missing folder and of a file", "upload-dir nope a.patch dir", result{1,
			"Error: a.patch is not a directory. Please use upload\nError: Directory does not exist: nope\nfile: dir/c.patch 5 is now available\nfile: dir/d.patch 4 is now available\n\n", ""}},
		{"upload-dir with a refused patch", "upload-dir .", result{1,
			"file: a.patch 1048576 is now available\nfile: b.patch 2 is now available\n\nError:\nPatch validation failed for bad.patch\n\n", ""}},
		{"upload-dir with --debug", "--debug upload-dir dir", result{0,
			"{\n    \"error\": \"\",\n    \"info\": \"file: dir/c.patch 5 is now available\\nfile: dir/d.patch 4 is now available\\n\",\n    \"warning\": \"\"\n}\n", ""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			check(t, ctl.run(t, strings.Fields(tt.args)...), tt.want)
		})
	}
}

func TestUploadStopsWithoutAController(t *testing.T) {
	folder(t)
	env, stdout, stderr := environment(map[string]string{"STARPATCH_SOCKET": "/nowhere"}, "upload", "a.patch", "b.patch")
	code := Run(t.Context(), env)
	check(t, result{code, stdout.String(), stderr.String()}, result{1, "",
		"Error: cannot reach the patch controller at /nowhere: no such file or directory; check that sw-patch-controller runs on this machine, or set STARPATCH_SOCKET to its socket\n"})
}

func TestUploadShowsItsProgressToATerminalOnly(t *testing.T) {
	folder(t)
	env, stdout, stderr := environment(map[string]string{"STARPATCH_SOCKET": controller{"POST /v1/upload": accept(t)}.listen(t)}, "upload", "a.patch")
	env.Progress = 80
	code := Run(t.Context(), env)
	if code != 0 || stdout.String() != "file: a.patch 1048576 is now available\n\n" || !strings.HasPrefix(stderr.String(), "\ra.patch   0% |                    | ( 0 B/1.0 MiB) ") || !strings.HasSuffix(stderr.String(), " \r") {
		t.Errorf("got %d, %q, %q", code, stdout, stderr)
	}
}

func TestUploadBarsNeverFillTheLine(t *testing.T) {
	folder(t)
	long := strings.Repeat("LONG_", 30) + "0001.patch"
	if err := os.Rename("a.patch", long); err != nil {
		t.Fatal(err)
	}
	for _, columns := range []int{20, 40, 66, 80, 200, 300} {
		env, stdout, stderr := environment(map[string]string{"STARPATCH_SOCKET": controller{"POST /v1/upload": accept(t)}.listen(t)}, "upload", long)
		env.Progress = columns
		if code := Run(t.Context(), env); code != 0 {
			t.Fatalf("got %d, %q, %q", code, stdout, stderr)
		}
		for line := range strings.SplitSeq(stderr.String(), "\r") {
			if n := utf8.RuneCountInString(line); n >= columns {
				t.Errorf("%d columns: a line of %d: %q", columns, n, line)
			}
		}
	}
}
