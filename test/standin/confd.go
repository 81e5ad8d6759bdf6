package standin

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Confd stands in for xivo-confd: who this XiVO is, and its users for the
// directories of others.
type Confd struct {
	Release          Release
	Database         string // DSN
	HTTPS, HTTP      string // where to listen; XiVO: every address, and loopback only
	Certificate, Key string // PEM files, read at start
	Log              *slog.Logger
}

// Run serves until the context ends. It calls ready with the addresses, HTTPS
// first, once both are open.
func (c *Confd) Run(ctx context.Context, ready func([]net.Addr)) error {
	pair, err := serverTLS(c.Certificate, c.Key)
	if err != nil {
		return err
	}
	return serve(ctx, "xivo-confd", ready,
		endpoint{c.HTTPS, pair, c.Handler("https")},
		endpoint{c.HTTP, nil, c.Handler("http")})
}

// Handler answers the requests of a port, that of https or of http.
func (c *Confd) Handler(scheme string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /1.1/infos", c.infos)
	mux.HandleFunc("GET /1.1/users", c.users)
	return c.guarded(mux, scheme == "http" || !c.Release.asksForPasswords())
}

// guarded lets a request in by xivo-confd's order of checks: from 127.0.0.1,
// where that is free; from an address that is, letter for letter, the host of an
// enabled web-service user (a subnet or a name never matches); or with the
// login and password of one. Access lists count for tokens only, and are not
// looked at.
func (c *Confd) guarded(next http.Handler, free bool) http.Handler {
	digest := newDigestGuard("xivo-confd", c.password)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		if free && host == "127.0.0.1" || c.hostAllowed(r.Context(), host) || digest.allows(r) {
			next.ServeHTTP(w, r)
			return
		}
		c.Log.Info("refused", "from", host, "path", r.URL.Path)
		digest.challenge(w)
	})
}

func (c *Confd) hostAllowed(ctx context.Context, host string) (found bool) {
	err := database(c.Database).do(ctx, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, "SELECT EXISTS (SELECT 1 FROM accesswebservice WHERE host = $1 AND disable = 0)", host).Scan(&found)
	})
	if err != nil {
		c.Log.Error("read the hosts of web-service users", "err", err)
		return false
	}
	return found
}

// password is the first enabled one of the login, in no order: nothing keeps
// two users from having the same login. It is stored in clear, because digest
// authentication needs it.
func (c *Confd) password(login string) (string, bool) {
	ctx := context.Background()
	var password *string
	err := database(c.Database).do(ctx, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, "SELECT passwd FROM accesswebservice WHERE login = $1 AND disable = 0 LIMIT 1", login).Scan(&password)
	})
	if err != nil || password == nil {
		if err != nil && err != pgx.ErrNoRows {
			c.Log.Error("read the password of a web-service user", "login", login, "err", err)
		}
		return "", false
	}
	return *password, true
}

// infos answers from the database every time, whatever XIVO_UUID says.
func (c *Confd) infos(w http.ResponseWriter, r *http.Request) {
	uuid, err := database(c.Database).uuid(r.Context())
	if err != nil {
		c.Log.Error("infos", "err", err)
		refuse(w, http.StatusInternalServerError, "the database did not answer")
		return
	}
	answer(w, http.StatusOK, map[string]string{"uuid": uuid})
}

// directoryUser is a user as the view "directory" shows it.
type directoryUser struct {
	oldDirectoryUser
	UUID  string  `json:"uuid" db:"uuid"`
	Email *string `json:"email" db:"email"`
}

// oldDirectoryUser is a user as it showed it in 15.20.
type oldDirectoryUser struct {
	ID          int     `json:"id" db:"id"`
	LineID      *int    `json:"line_id" db:"line_id"`
	AgentID     *int    `json:"agent_id" db:"agent_id"`
	Firstname   *string `json:"firstname" db:"firstname"`
	Lastname    *string `json:"lastname" db:"lastname"`
	Exten       *string `json:"exten" db:"exten"`
	Mobile      *string `json:"mobile_phone_number" db:"mobile_phone_number"`
	Voicemail   *string `json:"voicemail_number" db:"voicemail_number"`
	Userfield   *string `json:"userfield" db:"userfield"`
	Description *string `json:"description" db:"description"`
	Context     *string `json:"context" db:"context"`
}

func (u directoryUser) matches(term string) bool {
	name := value(u.Firstname) + " " + value(u.Lastname)
	for _, s := range []string{name, value(u.Exten), value(u.Mobile), value(u.Voicemail), value(u.Userfield), value(u.Description), value(u.Email)} {
		if strings.Contains(strings.ToLower(s), strings.ToLower(term)) {
			return true
		}
	}
	return false
}

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// users knows the view "directory" only. search is a part of any field in any
// case; context is exact.
func (c *Confd) users(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if q.Get("view") != "directory" {
		refuse(w, http.StatusBadRequest, "the stand-in knows view=directory only")
		return
	}
	var all []directoryUser
	err := database(c.Database).do(r.Context(), func(conn *pgx.Conn) error {
		rows, _ := conn.Query(r.Context(), `SELECT id, uuid, line_id, agent_id, firstname, lastname, exten, mobile_phone_number,
			voicemail_number, userfield, description, context, email FROM userfeatures ORDER BY id`)
		var err error
		all, err = pgx.CollectRows(rows, pgx.RowToStructByName[directoryUser])
		return err
	})
	if err != nil {
		c.Log.Error("users", "err", err)
		refuse(w, http.StatusInternalServerError, "the database did not answer")
		return
	}
	items := []any{}
	for _, u := range all {
		if !c.Release.usersHaveUUIDs() {
			u.Email = nil
		}
		switch {
		case !u.matches(q.Get("search")) || q.Has("context") && value(u.Context) != q.Get("context"):
		case c.Release.usersHaveUUIDs():
			items = append(items, u)
		default:
			items = append(items, u.oldDirectoryUser)
		}
	}
	answer(w, http.StatusOK, map[string]any{"total": len(items), "items": items})
}
