package swpatch

import (
	"encoding/json"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/internal/cli"
)

// messages prints the common reply of a change. Each text is one line to the original, so that its own newline leaves an
// empty line behind. The error says whether the controller refused anything.
func (s *session) messages(m api.Messages) error {
	if s.debug {
		if err := s.printReply(); err != nil {
			return err
		}
	} else {
		s.texts(m)
	}
	if m.Error != "" {
		return errSaid
	}
	return nil
}

func (s *session) texts(m api.Messages) {
	if m.Info != "" {
		s.out.Line("%s", m.Info)
	}
	if m.Warning != "" {
		s.out.Line("Warning:")
		s.out.Line("%s", m.Warning)
	}
	s.refused(m.Error)
}

// refused prints what the controller refused with, if anything.
func (s *session) refused(text string) {
	if text != "" {
		s.out.Line("Error:")
		s.out.Line("%s", text)
	}
}

// printReply prints the body of the last answer, for --debug: its pd or data member where it has one.
func (s *session) printReply() error {
	body := s.reply
	var members struct {
		Patches json.RawMessage `json:"pd"`
		Data    json.RawMessage `json:"data"`
	}
	// An answer that is no object has no members; it is printed whole.
	if err := json.Unmarshal(body, &members); err == nil {
		switch {
		case members.Patches != nil:
			body = members.Patches
		case members.Data != nil:
			body = members.Data
		}
	}
	text, err := cli.JSON(body)
	if err != nil {
		return err
	}
	s.out.Line("%s", text)
	return nil
}

// change prints the reply of one request.
func (s *session) change(m api.Messages, err error) error {
	if err != nil {
		return err
	}
	return s.messages(m)
}

// messagesJSON is m as --debug shows it.
func messagesJSON(m api.Messages) (string, error) {
	text, err := json.Marshal(m)
	if err != nil {
		return "", err
	}
	return cli.JSON(text)
}
