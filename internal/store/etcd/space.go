package etcd

import (
	"context"
	"errors"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Space is how full the store is.
type Space struct {
	Bytes   int64 // size of the database file
	InUse   int64 // of that, what holds data; the rest is reused before the file grows
	Quota   int64 // limit of Bytes; 0 when it is not known (a site's own etcd)
	Refused bool  // commits fail with store.ErrNoSpace until [Store.Reclaim]
}

// Space asks the store how full it is.
func (s *Store) Space(ctx context.Context) (Space, error) {
	ctx, done := s.join(ctx)
	defer done()
	endpoint := ""
	if eps := s.client.Endpoints(); len(eps) > 0 {
		endpoint = eps[0]
	}
	resp, err := s.client.Status(ctx, endpoint)
	if err != nil {
		return Space{}, why(ctx, err)
	}
	alarms, err := s.client.AlarmList(ctx)
	if err != nil {
		return Space{}, why(ctx, err)
	}
	out := Space{Bytes: resp.DbSize, InUse: resp.DbSizeInUse, Quota: resp.DbSizeQuota}
	for _, a := range alarms.Alarms {
		out.Refused = out.Refused || a.Alarm == pb.AlarmType_NOSPACE
	}
	return out, nil
}

// Reclaim makes room after [store.ErrNoSpace]: it forgets all history, gives unused space of the file back and lets commits
// through again, which fill the store anew when nothing was deleted before. Nothing is answered while the file is rewritten.
func (s *Store) Reclaim(ctx context.Context) error {
	if s.embed == nil {
		return fmt.Errorf("cannot make room in the site's own etcd; its administrators can")
	}
	ctx, done := s.join(ctx)
	defer done()
	resp, err := s.client.Get(ctx, "none")
	if err != nil {
		return why(ctx, err)
	}
	_, err = s.client.Compact(ctx, resp.Header.Revision, clientv3.WithCompactPhysical())
	if err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return why(ctx, err)
	}
	// Not through the client: within one process its maintenance service has no health service to tell, and panics.
	if err := s.embed.etcd.Server.Backend().Defrag(); err != nil {
		return fmt.Errorf("cannot give back the unused space of the state store: %w", err)
	}
	alarms, err := s.client.AlarmList(ctx)
	if err != nil {
		return why(ctx, err)
	}
	for _, a := range alarms.Alarms {
		if a.Alarm != pb.AlarmType_NOSPACE { // the other one says that data is damaged
			continue
		}
		if _, err := s.client.AlarmDisarm(ctx, (*clientv3.AlarmMember)(a)); err != nil {
			return why(ctx, err)
		}
	}
	return nil
}
