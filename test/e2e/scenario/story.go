package scenario

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/xivo-mesh/packer-plugin-xivo/test/lab"
)

// Story is how three clones of one image become a mesh, as an end user sees it.
// The demo shows it; the end-to-end test goes through it too, and looks closer
// on the way. What the steps found is in the fields.
type Story struct {
	// Open makes the mesh; the first step calls it. Whoever set it closes the mesh.
	Open func(context.Context) (*Mesh, error)

	Mesh    *Mesh
	Nodes   map[int]*Node
	UUIDs   map[int]string
	Users   map[int]User
	Clients map[int]*Client
	Joined  map[int]time.Duration // from a node's power-on until it was joined
	TakenIn map[int]time.Duration // from node 3's services being up until that node was joined with it
}

// NewStory makes a story at its beginning; open makes its mesh.
func NewStory(open func(context.Context) (*Mesh, error)) *Story {
	return &Story{
		Open:  open,
		Nodes: map[int]*Node{}, UUIDs: map[int]string{}, Users: map[int]User{}, Clients: map[int]*Client{},
		Joined: map[int]time.Duration{}, TakenIn: map[int]time.Duration{},
	}
}

// Step is a part of a story. Each builds on the ones before.
type Step struct {
	Name string
	Do   func(context.Context) error
}

// The names of steps that something else follows.
const (
	People      = "a user on each; one logs in on node 1 and stays"
	ThirdBoots  = "boot node 3, with the same user data"
	ThirdJoined = "node 3 is joined, and nodes 1 and 2 took it in"
)

// Steps are the story's, in their order.
func (s *Story) Steps() []Step {
	return []Step{
		{"boot nodes 1 and 2, clones of it", s.bootTwo},
		{"node 1 and node 2 are joined", func(ctx context.Context) error { return s.join(ctx, 1, 2) }},
		{People, s.people},
		{ThirdBoots, func(ctx context.Context) error { return s.boot(ctx, 3) }},
		{ThirdJoined, s.thirdJoined},
		{"searches on node 3 find the users of nodes 1 and 2", func(ctx context.Context) error {
			return errors.Join(s.Finds(ctx, 3, 1), s.Finds(ctx, 3, 2))
		}},
		{"searches on nodes 1 and 2 find the user of node 3", func(ctx context.Context) error {
			return errors.Join(s.Finds(ctx, 1, 3), s.Finds(ctx, 2, 3))
		}},
		{"a status goes from node 1 to node 3, live", s.statusToThird},
		{"a status goes from node 3 to node 1, live", func(ctx context.Context) error { return s.sends(ctx, 3, 1, "outtolunch") }},
		{"the client on node 1 was never dropped", func(context.Context) error {
			return errors.Join(s.Clients[1].Connected(), s.Clients[3].Connected())
		}},
	}
}

// Close logs everybody out.
func (s *Story) Close() {
	for _, c := range s.Clients {
		c.Close()
	}
}

func (s *Story) bootTwo(ctx context.Context) (err error) {
	if s.Mesh, err = s.Open(ctx); err != nil {
		return err
	}
	return errors.Join(s.boot(ctx, 1), s.boot(ctx, 2))
}

func (s *Story) boot(ctx context.Context, n int) error {
	node, err := s.Mesh.Boot(ctx, n)
	if err == nil {
		s.Nodes[n] = node
	}
	return err
}

// join waits until the new nodes are joined with everybody who is there, each
// with a UUID that no other has.
func (s *Story) join(ctx context.Context, fresh ...int) error {
	joined := make([]time.Duration, len(fresh))
	wait, cancel := context.WithTimeout(ctx, lab.Hang)
	defer cancel()
	group, wait := errgroup.WithContext(wait)
	for i, n := range fresh {
		group.Go(func() error {
			_, err := s.Nodes[n].WaitJoined(wait, len(s.Nodes)-1, time.Time{})
			joined[i] = time.Since(s.Nodes[n].Booted)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for i, n := range fresh {
		s.Joined[n] = joined[i]
		uuid, err := s.Nodes[n].UUID(ctx)
		if err != nil {
			return err
		}
		for other, its := range s.UUIDs {
			if its == uuid {
				return fmt.Errorf("node %d and node %d have one UUID, %s", n, other, uuid)
			}
		}
		s.UUIDs[n] = uuid
	}
	return nil
}

var firstnames = map[int]string{1: "Alice", 2: "Bruno", 3: "Chloe"}

func (s *Story) addUser(ctx context.Context, n int) (err error) {
	s.Users[n], err = s.Nodes[n].AddUser(ctx, firstnames[n])
	return err
}

// Connect logs somebody in on a node, who stays.
func (s *Story) Connect(ctx context.Context, n int) error {
	client, err := s.Nodes[n].Connect(ctx)
	if err == nil {
		s.Clients[n] = client
	}
	return err
}

func (s *Story) people(ctx context.Context) error {
	if err := errors.Join(s.addUser(ctx, 1), s.addUser(ctx, 2), s.Connect(ctx, 1)); err != nil {
		return err
	}
	// A person at work: the own status, and a colleague's on the other node.
	return s.sends(ctx, 2, 1, "away")
}

func (s *Story) thirdJoined(ctx context.Context) error {
	wait, cancel := context.WithTimeout(ctx, lab.Hang)
	defer cancel()
	group, wait := errgroup.WithContext(wait)
	group.Go(func() error { return s.join(wait, 3) })
	old := []int{1, 2}
	seen := make([]time.Time, len(old))
	for i, n := range old {
		group.Go(func() error {
			_, err := s.Nodes[n].WaitJoined(wait, 2, s.Nodes[3].Booted)
			seen[i] = time.Now()
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	up, err := s.Nodes[3].ServicesUp(ctx)
	if err != nil {
		return err
	}
	for i, n := range old {
		s.TakenIn[n] = seen[i].Sub(up)
	}
	return s.addUser(ctx, 3)
}

// Finds waits until a search on one node finds the user of another.
func (s *Story) Finds(ctx context.Context, on, of int) error {
	ctx, cancel := context.WithTimeout(ctx, lab.Hang)
	defer cancel()
	return s.Nodes[on].Finds(ctx, s.Users[of], s.UUIDs[of])
}

func (s *Story) statusToThird(ctx context.Context) error {
	if err := s.Connect(ctx, 3); err != nil {
		return err
	}
	return s.sends(ctx, 1, 3, "donotdisturb")
}

// sends lets the user of one node change status, and the client that is
// connected to another see it. That client is the one that was there before.
func (s *Story) sends(ctx context.Context, from, to int, status string) error {
	ctx, cancel := context.WithTimeout(ctx, lab.Hang)
	defer cancel()
	watcher, uuid, user := s.Clients[to], s.UUIDs[from], s.Users[from].ID
	if err := watcher.Watch(uuid, user); err != nil {
		return err
	}
	// The watcher's node fetches the first status over HTTP, which proves that it
	// finds the other node; the second one comes over the bus.
	const initial = "available"
	setter, err := s.Nodes[from].Connect(ctx)
	if err != nil {
		return err
	}
	defer setter.Close()
	for _, status := range []string{initial, status} {
		if err := setter.SetStatus(user, status); err != nil {
			return err
		}
		if err := watcher.Sees(ctx, uuid, user, status); err != nil {
			return err
		}
	}
	return nil
}
