package standin

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// ctiClient is a client's connection. Both sides send lines of JSON, each with
// a class:
//
//	-> {"class":"subscribe_user_status","xivo_uuid":U,"user_id":N}
//	<- {"class":"user_status_update","xivo_uuid":U,"user_id":N,"status":S}   at first, when it is known, and at every change
//	-> {"class":"set_user_status","user_id":N,"status":S}                    of a user of this XiVO
//	<- {"class":"set_user_status","user_id":N,"status":S}                    done, and told on the bus
//	<- {"class":"error","error":TEXT}
//
// subscribe_endpoint_status and subscribe_agent_status are alike.
type ctiClient struct {
	conn net.Conn
	out  chan any
}

// outgoing is how many messages wait for a client that does not read, before
// its connection is dropped.
const outgoing = 256

func (c *ctiClient) send(m any) {
	select {
	case c.out <- m:
	default:
		c.conn.Close()
	}
}

// acceptClients serves clients until the context ends, and then drops them.
func (d *ctid) acceptClients(ctx context.Context, l net.Listener) {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	var clients sync.WaitGroup
	defer clients.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			d.log.Error("accept a client", "err", err)
			if !sleep(ctx, 100*time.Millisecond) {
				return
			}
			continue
		}
		clients.Go(func() { d.serveClient(ctx, conn) })
	}
}

func (d *ctid) serveClient(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	c := &ctiClient{conn: conn, out: make(chan any, outgoing)}
	defer func() {
		for _, n := range d.kinds {
			n.forget(c)
		}
	}()

	done := make(chan struct{})
	defer close(done)
	go func() {
		encoder := json.NewEncoder(conn)
		for {
			select {
			case m := <-c.out:
				if encoder.Encode(m) != nil {
					conn.Close()
					return
				}
			case <-done:
				return
			}
		}
	}()

	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		if err := d.command(ctx, c, lines.Bytes()); err != nil {
			c.send(map[string]string{"class": "error", "error": err.Error()})
		}
	}
}

func (d *ctid) command(ctx context.Context, c *ctiClient, line []byte) error {
	var m map[string]json.RawMessage
	var head struct {
		Class    string
		XivoUUID string `json:"xivo_uuid"`
		Status   string
	}
	if err := json.Unmarshal(line, &m); err != nil {
		return err
	}
	if err := json.Unmarshal(line, &head); err != nil {
		return err
	}
	if head.Class == "set_user_status" {
		var user int
		if err := json.Unmarshal(m["user_id"], &user); err != nil {
			return fmt.Errorf("user_id: %w", err)
		}
		if err := d.setPresence(ctx, user, head.Status); err != nil {
			return err
		}
		c.send(map[string]any{"class": head.Class, "user_id": user, "status": head.Status})
		return nil
	}
	i := slices.IndexFunc(d.kinds, func(n *notifier) bool { return head.Class == "subscribe_"+n.kind.name+"_status" })
	if i < 0 {
		return fmt.Errorf("unknown class %q", head.Class)
	}
	n := d.kinds[i]
	var id int
	if err := json.Unmarshal(m[n.kind.id], &id); err != nil {
		return fmt.Errorf("%s: %w", n.kind.id, err)
	}
	n.watch(ctx, c, resource{head.XivoUUID, id})
	return nil
}

// Client is a user's program, connected to the xivo-ctid of the user's XiVO.
type Client struct {
	Address string
}

// Watch subscribes to the statuses of users of a XiVO and copies every line
// that comes to w, until the context ends or the connection drops.
func (c Client) Watch(ctx context.Context, w io.Writer, xivoUUID string, users ...int) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	for _, user := range users {
		if err := json.NewEncoder(conn).Encode(map[string]any{"class": "subscribe_user_status", "xivo_uuid": xivoUUID, "user_id": user}); err != nil {
			return err
		}
	}
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		if _, err := fmt.Fprintln(w, lines.Text()); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("xivo-ctid stand-in at %s closed the connection", c.Address)
}

// Set changes the status of a user of the XiVO that it connects to, and
// returns when that was told on the bus.
func (c Client) Set(ctx context.Context, user int, status string) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := json.NewEncoder(conn).Encode(map[string]any{"class": "set_user_status", "user_id": user, "status": status}); err != nil {
		return err
	}
	var reply struct{ Class, Error string }
	if err := json.NewDecoder(conn).Decode(&reply); err != nil {
		return fmt.Errorf("set the status of user %d at %s: %w", user, c.Address, err)
	}
	if reply.Class == "error" {
		return fmt.Errorf("set the status of user %d at %s: %s", user, c.Address, reply.Error)
	}
	return nil
}

func (c Client) dial(ctx context.Context) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", c.Address)
	if err != nil {
		return nil, fmt.Errorf("connect to the xivo-ctid stand-in: %w", err)
	}
	return conn, nil
}
