package trust

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/starpatch/starpatch/problem"
)

const keys = "../../patch/patchfile/testdata/vectors/keys/"

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(keys + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func add(t *testing.T, s Store, class, name, file string) {
	t.Helper()
	if _, err := s.Add(class, name, read(t, file)); err != nil {
		t.Fatal(err)
	}
}

func count(t *testing.T, s Store) [2]int {
	t.Helper()
	now, err := s.Now()
	if err != nil {
		t.Fatal(err)
	}
	return [2]int{len(now.Formal), len(now.Dev)}
}

func TestWhatCounts(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  func(*Store)
		want [2]int
	}{
		{"developer keys do not count by themselves", func(*Store) {}, [2]int{1, 0}},
		{"the setting makes developer keys count", func(s *Store) { s.AcceptDev = true }, [2]int{1, 1}},
		{"a marker signed by a formal key makes them count", func(s *Store) { s.Marker = keys + "dev_certificate_enable.bin" }, [2]int{1, 1}},
		{"any other marker does not", func(s *Store) { s.Marker = keys + "formal-cert.pem" }, [2]int{1, 0}},
		{"a missing marker does not", func(s *Store) { s.Marker = "/nonexistent" }, [2]int{1, 0}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := Store{Dir: t.TempDir()}
			add(t, s, "formal", "a.pem", "formal-cert.pem")
			add(t, s, "dev", "b.pem", "dev-public-key.pem")
			tt.set(&s)
			if got := count(t, s); got != tt.want {
				t.Errorf("formal and dev keys that count: got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestAMarkerIsWorthNothingOnceItsFormalKeyIsGone(t *testing.T) {
	s := Store{Dir: t.TempDir(), Marker: keys + "dev_certificate_enable.bin"}
	add(t, s, "formal", "a.pem", "formal-cert.pem")
	add(t, s, "dev", "b.pem", "dev-cert.pem")
	if err := s.Remove("formal", "a.pem"); err != nil {
		t.Fatal(err)
	}
	if got, want := count(t, s), [2]int{}; got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestAddAndRemove(t *testing.T) {
	s := Store{Dir: t.TempDir()}
	add(t, s, "formal", "a.pem", "formal-cert.pem")
	add(t, s, "formal", "a.pem", "formal-public-key.pem") // the same key in another form
	for _, tt := range []struct {
		name, class, file, pem string
		want                   problem.Kind
	}{
		{"another key under a name that is taken", "formal", "a.pem", read(t, "other-cert.pem"), problem.Conflict},
		{"a private key", "formal", "b.pem", read(t, "other-private-key.pem"), problem.Invalid},
		{"no key", "formal", "b.pem", "hello", problem.Invalid},
		{"another class", "mine", "b.pem", read(t, "other-cert.pem"), problem.Invalid},
		{"a name that leads out", "formal", "../b.pem", read(t, "other-cert.pem"), problem.Invalid},
		{"a hidden name", "formal", ".b.pem", read(t, "other-cert.pem"), problem.Invalid},
		{"another extension", "formal", "b.txt", read(t, "other-cert.pem"), problem.Invalid},
	} {
		t.Run(tt.name+" is refused", func(t *testing.T) {
			if _, err := s.Add(tt.class, tt.file, tt.pem); problem.KindOf(err) != tt.want || err == nil {
				t.Errorf("got %v, want kind %q", err, tt.want)
			}
		})
	}
	got, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, k := range got {
		names = append(names, k.Class+"/"+k.Name)
	}
	if diff := cmp.Diff([]string{"formal/a.pem"}, names); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
	if err := s.Remove("formal", "none.pem"); problem.KindOf(err) != problem.NotFound {
		t.Errorf("removing what is not there: got %v, want not-found", err)
	}
}

func TestAFileThatIsNoKeyIsNamed(t *testing.T) {
	s := Store{Dir: t.TempDir()}
	add(t, s, "formal", "a.pem", "formal-cert.pem")
	if err := os.WriteFile(filepath.Join(s.Dir, "formal", "broken.pem"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Now(); err == nil || problem.KindOf(err) != problem.Invalid {
		t.Errorf("got %v, want a refusal that names the file", err)
	}
}
