package main

import (
	"flag"
	"testing"

	"github.com/starpatch/starpatch/internal/buildtool/buildtooltest"
)

var update = flag.Bool("update", false, "rewrite the expectations in the scripts")

func TestMain(m *testing.M) { buildtooltest.Main(m) }

func TestScripts(t *testing.T) { buildtooltest.Run(t, *update) }
