package agentlink_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/starpatch/starpatch/internal/agentlink"
	pb "github.com/starpatch/starpatch/internal/agentlink/linkpb"
	"github.com/starpatch/starpatch/internal/agentlink/pki"
	"github.com/starpatch/starpatch/problem"
)

func wantProblem(t *testing.T, err error, kind problem.Kind, text string) {
	t.Helper()
	if err == nil || problem.KindOf(err) != kind || !strings.Contains(err.Error(), text) {
		t.Errorf("got %q: %v, want %q: ...%s...", problem.KindOf(err), err, kind, text)
	}
}

func TestTokens(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	tok, rec, err := agentlink.NewToken("compute-0", time.Hour, strings.Repeat("a", 64), now)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := agentlink.ParseToken(" " + tok.String() + "\n"); err != nil || got != tok {
		t.Fatalf("parsed %+v, %v", got, err)
	}
	if strings.Contains(rec.SecretHash, tok.Secret) {
		t.Error("the record holds the secret")
	}
	claim := agentlink.Claim{Token: tok.ID, Secret: tok.Secret, Host: "compute-0", Key: "key-1"}
	used, err := rec.Redeem(claim, now)
	if err != nil || !used.Used.Equal(now) || used.Key != "key-1" {
		t.Fatalf("redeemed %+v, %v", used, err)
	}
	for _, c := range []struct {
		name string
		rec  agentlink.TokenRecord
		edit func(*agentlink.Claim)
		at   time.Duration
		kind problem.Kind
		want string
	}{
		{"the same key may come again", used, func(*agentlink.Claim) {}, time.Minute, "", ""},
		{"another key may not", used, func(c *agentlink.Claim) { c.Key = "key-2" }, time.Minute, problem.Conflict, "was used at 2026-11-23T12:00:00Z by another key"},
		{"a wrong secret", rec, func(c *agentlink.Claim) { c.Secret = strings.Repeat("0", 32) }, 0, problem.Unauthorized, "does not know this join token"},
		{"an unknown id says the same", agentlink.TokenRecord{}, func(*agentlink.Claim) {}, 0, problem.Unauthorized, "does not know this join token"},
		{"another host", rec, func(c *agentlink.Claim) { c.Host = "compute-1" }, 0, problem.Forbidden, "is for compute-0, not for compute-1"},
		{"too late", rec, func(*agentlink.Claim) {}, time.Hour, problem.Unauthorized, "expired at 2026-11-23T13:00:00Z"},
		{"too late for the same key too", used, func(*agentlink.Claim) {}, time.Hour, problem.Unauthorized, "expired at"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := claim
			c.edit(&cl)
			_, err := c.rec.Redeem(cl, now.Add(c.at))
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantProblem(t, err, c.kind, c.want)
		})
	}
	for _, bad := range []string{"", "a.b.c", tok.ID + "." + tok.Secret, tok.String() + "0", strings.ToUpper(tok.String()), "../" + tok.String()} {
		if _, err := agentlink.ParseToken(bad); err == nil || strings.Contains(err.Error(), tok.Secret) {
			t.Errorf("ParseToken(%q): %v", bad, err)
		}
	}
}

func TestJoin(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(t *testing.T, s *system, cfg *agentlink.JoinConfig)
		kind problem.Kind
		want string
	}{
		{"with a good token", func(*testing.T, *system, *agentlink.JoinConfig) {}, "", ""},
		{"with a token of another host", func(_ *testing.T, s *system, cfg *agentlink.JoinConfig) { cfg.Token = s.token("storage-0") }, problem.Forbidden, "is for storage-0, not for compute-0"},
		{"with an expired token", func(*testing.T, *system, *agentlink.JoinConfig) { time.Sleep(2 * time.Hour) }, problem.Unauthorized, "expired at"},
		{"with a wrong secret", func(_ *testing.T, _ *system, cfg *agentlink.JoinConfig) {
			p := strings.Split(cfg.Token, ".")
			cfg.Token = p[0] + "." + strings.Repeat("0", 32) + "." + p[2]
		}, problem.Unauthorized, "does not know this join token"},
		{"with a token of another system", func(_ *testing.T, _ *system, cfg *agentlink.JoinConfig) {
			p := strings.Split(cfg.Token, ".")
			cfg.Token = p[0] + "." + p[1] + "." + strings.Repeat("0", 64)
		}, problem.Forbidden, "certificate authority is not the one that the join token names"},
		{"with text that is no token", func(_ *testing.T, _ *system, cfg *agentlink.JoinConfig) { cfg.Token = "hello" }, problem.Invalid, "not a join token"},
		{"as a host whose name is none", func(_ *testing.T, _ *system, cfg *agentlink.JoinConfig) { cfg.Host = "../etc" }, problem.Invalid, "not a host name"},
		{"at an address that the controller's certificate does not have", func(_ *testing.T, _ *system, cfg *agentlink.JoinConfig) {
			cfg.Controllers = []string{"192.0.2.9:5489"}
		}, problem.Unauthorized, "certificate"},
		{"while no controller runs", func(_ *testing.T, s *system, _ *agentlink.JoinConfig) { s.stop() }, problem.Unavailable, "cannot reach controller 192.0.2.1:5489"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSystem(t)
				s.start()
				dir := t.TempDir()
				cfg := s.joinConfig("compute-0", dir)
				c.edit(t, s, &cfg)
				id, err := agentlink.Join(t.Context(), cfg)
				if c.want != "" {
					wantProblem(t, err, c.kind, c.want)
					if _, err := pki.LoadIdentity(dir); problem.KindOf(err) != problem.NotFound {
						t.Errorf("after a refusal: %v", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if id.Host() != "compute-0" || identity(t, dir).Host() != "compute-0" {
					t.Errorf("joined as %s", id.Host())
				}
				cert, _, _ := id.Files()
				if st, err := os.Stat(cert); err != nil || st.Mode().Perm() != 0o600 {
					t.Errorf("key file: %v, %v", st.Mode(), err)
				}
			})
		})
	}
}

func TestATokenJoinsOneKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSystem(t)
		s.start()
		cfg := s.joinConfig("compute-0", t.TempDir())
		// The reply of the first join is lost: the key is durable, the certificate is not.
		key, err := pki.JoiningKey(cfg.Dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := agentlink.Join(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(cfg.Dir, "agent.pem")); err != nil {
			t.Fatal(err)
		}
		// A thief has another key.
		thief := cfg
		thief.Dir = t.TempDir()
		_, err = agentlink.Join(t.Context(), thief)
		wantProblem(t, err, problem.Conflict, "was used at")
		csr, err := pki.Request(key, "compute-0")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := pb.NewEnrollmentClient(s.raw(s.anonymous())).Join(t.Context(), &pb.JoinRequest{Token: cfg.Token, Csr: csr}); err != nil {
			t.Errorf("the same key again: %v", err)
		}
	})
}

// A host whose certificate was revoked comes back with a new token; the old one is not asked for again.
func TestAHostComesBackWithANewToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSystem(t)
		s.start()
		cfg := s.joinConfig("compute-0", t.TempDir())
		needs := func(token string, want bool) {
			t.Helper()
			if got, err := agentlink.NeedsJoin(cfg.Dir, token); err != nil || got != want {
				t.Errorf("needs to join: %v, %v, want %v", got, err, want)
			}
		}
		needs(cfg.Token, true)
		if _, err := pki.JoiningKey(cfg.Dir); err != nil {
			t.Fatal(err)
		}
		needs(cfg.Token, true)
		old, err := agentlink.Join(t.Context(), cfg)
		must(t, err)
		needs(cfg.Token, false)
		s.reg.revoke(pki.Serial(old.Certificate()))
		cfg.Token = s.token("compute-0")
		needs(cfg.Token, true)
		_, err = agentlink.Join(t.Context(), cfg)
		must(t, err)
		needs(cfg.Token, false)
		s.run(cfg.Dir, newHandler())
		if ss := <-s.ctl.attached; ss.peer.Serial == pki.Serial(old.Certificate()) {
			t.Error("the revoked certificate was used")
		}
	})
}

// A host that stands between agent and controller learns nothing, not even the token.
func TestNothingIsSentToAnotherCA(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSystem(t)
		impostor := newSystem(t)
		impostor.start()
		cfg := s.joinConfig("compute-0", t.TempDir())
		cfg.Dial = impostor.dial
		_, err := agentlink.Join(t.Context(), cfg)
		wantProblem(t, err, problem.Forbidden, "certificate authority is not the one")
		if n := impostor.reg.asked.Load(); n != 0 {
			t.Errorf("the impostor saw %d claims", n)
		}
	})
}

func TestSigningRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSystem(t)
		s.start()
		dir := s.join("compute-0")
		key, err := pki.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		other, err := pki.Request(key, "controller-0")
		if err != nil {
			t.Fatal(err)
		}
		link := pb.NewLinkClient(s.raw(identity(t, dir).ClientTLS("192.0.2.1")))
		if _, err := link.Renew(t.Context(), &pb.RenewRequest{Csr: other}); err == nil || !strings.Contains(err.Error(), `"controller-0", which is not compute-0`) {
			t.Errorf("renewed for another host: %v", err)
		}
		if _, err := link.Renew(t.Context(), &pb.RenewRequest{Csr: make([]byte, 5000)}); err == nil || !strings.Contains(err.Error(), "at most 4096") {
			t.Errorf("renewed with a huge request: %v", err)
		}
		if _, err := link.Renew(t.Context(), &pb.RenewRequest{Csr: []byte("x")}); err == nil || !strings.Contains(err.Error(), "cannot be read") {
			t.Errorf("renewed with rubbish: %v", err)
		}
		if _, err := pb.NewEnrollmentClient(s.raw(s.anonymous())).Join(t.Context(), &pb.JoinRequest{Token: s.token("compute-0"), Csr: other}); err == nil || !strings.Contains(err.Error(), "is for compute-0, not for controller-0") {
			t.Errorf("joined as another host: %v", err)
		}
	})
}

func TestJoinTriesEveryController(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSystem(t)
		s.start()
		cfg := s.joinConfig("compute-0", t.TempDir())
		cfg.Controllers = []string{"192.0.2.2:5489", address}
		var dialled []string
		cfg.Dial = func(ctx context.Context, a string) (net.Conn, error) {
			dialled = append(dialled, a)
			if a != address {
				return nil, errors.New("connection refused")
			}
			return s.dial(ctx, a)
		}
		if _, err := agentlink.Join(t.Context(), cfg); err != nil {
			t.Errorf("%v after %q", err, dialled)
		}
	})
}
