/* h2.h: a gRPC server's engine: HTTP/2 connections on libnghttp2, driven by native goroutines.  Knows nothing of Python.
 *
 * The parts
 *   H2Server  listeners, connections, and the queue of calls that wait for the application
 *   H2Conn    a socket and its nghttp2 session.  Whoever holds H2Conn.lock is its owner and may touch the session: its own
 *             native goroutine (h2_conn.c: conn_main), or an application thread that flushes what it has just posted
 *   H2Stream  a call.  Incoming messages are queued for the application under H2Stream.lock; what the application wants
 *             done it posts to the connection as an H2Op, without a lock and without waiting
 *   H2Method  a path the application knows, so that calls of it come with what it has noted down for it
 *
 * Files: h2_conn.c (a connection's goroutine, flushing, its end), h2_frames.c (the session: calls from frames, frames from what was
 * posted), h2_guard.c (limits against abuse, and what is told of it), h2_stream.c (a call as the application sees it), h2_io.c (bytes to and
 * from the descriptor), h2_tls.c (the same through OpenSSL; h2_notls.c without), h2_text.c (header values), h2_server.c (listeners,
 * connections, the queue of calls, drain), h2_native.c (native goroutines).
 *
 * Lock order: servers_lock < H2Server.lock < H2Conn.lock < H2Stream.lock < H2Tls.lock < H2Server.ready_lock < the scheduler's.  None is held
 * while parked.
 */
#ifndef GMP_H2_H
#define GMP_H2_H

#include <sys/socket.h>

#include "chan.h"
#include "netpoll.h"

typedef struct H2Server H2Server;
typedef struct H2Conn H2Conn;
typedef struct H2Stream H2Stream;
typedef struct H2Method H2Method;
typedef struct H2Msg H2Msg;
typedef struct H2Op H2Op;
typedef struct H2Io H2Io;
typedef struct H2Buf H2Buf;
typedef struct H2Tls H2Tls;

/* Times in ns; 0: never. */
typedef struct H2Options {
    int64_t max_recv;             /* bytes of a received message; negative: any */
    uint32_t max_streams;         /* calls at once on a connection; 0: any */
    uint32_t stream_window;       /* bytes of one call that are received before the application asks for them */
    uint32_t conn_window;         /* the same for the connection as a whole */
    uint32_t max_headers;         /* bytes of a call's metadata */
    uint32_t max_frame;           /* bytes of a received frame */
    int64_t keepalive_time;       /* silence after which a ping is sent */
    int64_t keepalive_timeout;    /* and how long its answer may take */
    int64_t min_ping_interval;    /* pings that come faster, without data in between, are strikes */
    int32_t max_ping_strikes;     /* 0: any number */
    bool keepalive_without_calls; /* send them, and allow the client to, while there is no call */
    int64_t max_idle, max_age, max_age_grace;
    int64_t handshake_timeout;
    /* h2_guard.c; 0: any number, never */
    uint32_t max_resets, max_frames;
    uint64_t max_buffered;
    int64_t header_timeout, write_timeout;
} H2Options;

/* What is told to the application: why a connection was closed, calls refused. */
typedef enum H2Why {
    WHY_RESETS,
    WHY_FRAMES,
    WHY_HEADERS,
    WHY_PROTOCOL,
    WHY_PREFACE,
    WHY_HANDSHAKE,
    WHY_HEADER_TIMEOUT,
    WHY_KEEPALIVE,
    WHY_WRITE,
    WHY_PINGS,
    WHY_ORPHANS,
    WHY_BUFFERED,
    WHY_ACCEPT,
    WHY_TLS,
    H2_WHYS
} H2Why;
extern const char *const h2_why_names[H2_WHYS];
#define H2_NEWS 8
#define H2_NEWS_SIZE 480

/* Counts what comes in a burst; see h2_guard.c. */
typedef struct H2Meter {
    int64_t at, since; /* nanotime */
    uint32_t count;
} H2Meter;

/* Of a connection since it was opened, as channelz has it.  The owner writes; atomic for readers without the lock. */
typedef struct H2Counts {
    uint64_t streams_started, streams_succeeded, streams_failed; /* succeeded: the end was sent, whatever the status */
    uint64_t messages_sent, messages_received, keep_alives_sent;
    uint64_t bytes_sent, bytes_received; /* without what TLS adds */
    int64_t last_stream;                 /* nanotime, 0: none */
} H2Counts;
static inline void
h2_count(uint64_t *n, uint64_t by)
{
    atomic_store_relaxed(n, *n + by);
}

/* gRPC status codes that the engine itself uses. */
enum {
    GRPC_OK = 0,
    GRPC_CANCELLED = 1,
    GRPC_UNKNOWN = 2,
    GRPC_DEADLINE_EXCEEDED = 4,
    GRPC_RESOURCE_EXHAUSTED = 8,
    GRPC_UNIMPLEMENTED = 12,
    GRPC_INTERNAL = 13,
    GRPC_UNAVAILABLE = 14
};

/* Message encodings, also as bits 1 << n. */
enum { ENC_IDENTITY, ENC_DEFLATE, ENC_GZIP, ENC_OTHER };

/* A list of names and values, one after the other: two lengths, then the bytes. */
typedef struct H2Pair {
    uint32_t nlen, vlen;
    const char *name, *value;
} H2Pair;
#define H2_PAIR_HEAD (2 * sizeof(uint32_t))
const char *h2_pair(const char *at, H2Pair *pair); /* reads one; returns where the next begins */
char *h2_put_pair(char *at, const char *n, uint32_t nl, const char *v, uint32_t vl);

/* A received message. */
struct H2Msg {
    H2Msg *next;
    uint32_t len;
    bool compressed;
    char data[];
};

/* What the application wants done. */
enum {
    OP_HEAD = 1,    /* send the initial metadata now */
    OP_MESSAGE = 2, /* send a message */
    OP_STATUS = 4,  /* send the status, the call is over for the application */
    OP_ABORT = 8,   /* the same at once, without what is still queued */
};
struct H2Op {
    H2Op *next;
    H2Stream *st; /* a reference */
    uint8_t kind;
    uint8_t encoding; /* for grpc-encoding */
    uint16_t nhead, ntrail;
    uint32_t status;
    /* In h2_op_data: the framed message, the initial metadata, the status message (percent-encoded), the trailing metadata. */
    uint32_t message, head, details, trail;
};
static inline char *
h2_op_data(const H2Op *op) /* follows it; H2Stream.ask has none */
{
    return (char *)(op + 1);
}

/* Requests to the owner that need no data: bits of H2Stream.asked. */
enum { ASK_CONSUME = 1, ASK_DEADLINE = 2, ASK_CANCEL = 4 };

/* Why a call has ended for the application before it sent a status.  TOO_LARGE: or not well-formed. */
typedef enum H2End { END_NOT, END_RESET, END_LOST, END_DEADLINE, END_CANCEL, END_TOO_LARGE, END_STATUS } H2End;

/* What is wrong with a request's head. */
typedef enum H2Bad { BAD_NOT, BAD_SIZE, BAD_TIMEOUT, BAD_BINARY } H2Bad;

#define H2_INLINE_HEAD 192

struct H2Stream {
    uint32_t refs; /* atomic: the session's, the application's, one per op, one of the timer */
    int32_t id;
    H2Conn *conn;     /* a reference */
    H2Method *method; /* NULL: not known */
    int64_t started;  /* nanotime */
    int64_t deadline; /* nanotime, 0: none */

    /* The request's head: constant once it was handed over. */
    char *head; /* path, then pairs; inlined or on the heap */
    uint32_t head_len, head_cap, path_len;
    uint32_t npairs;
    uint8_t encoding, accepts; /* of its messages; bits of what it takes */
    uint8_t bad;               /* H2Bad */
    bool post, grpc;           /* :method is POST, content-type is application/grpc */

    /* Owner. */
    uint8_t prefix[5], nprefix;
    H2Msg *partial;
    uint32_t got; /* bytes of partial */
    uint32_t cap; /* that it has room for */
    bool offered; /* is or was in a list for the application */
    bool closed;  /* gone from the session */
    bool head_sent, status_sent, deferred;
    bool remote_closed;
    bool end_sent;   /* END_STREAM */
    bool cancelling; /* is in H2Conn.to_cancel */
    H2Stream *cancel_next;
    H2Op *out_first, *out_last; /* messages and status to send */
    uint32_t out_off;           /* bytes of out_first's message that went out */
    uint32_t framed;            /* bytes of the queue that nghttp2 has promised in a frame */
    H2Stream *next, *prev;      /* of the connection */
    Timer timer;
    bool timing;

    /* lock */
    Mutex lock;
    H2Msg *first, *last;
    uint32_t queued; /* bytes in them, prefixes included */
    uint32_t held;   /* received bytes that flow control was not told of */
    uint32_t take;   /* bytes the application took since it was told last */
    uint8_t ended;   /* H2End; atomic for readers without the lock */
    bool half_closed;
    bool notify; /* tell the application of an early end */
    bool orphan; /* it has ended early */
    WaitQ readers, writers;

    uint32_t out_queued; /* atomic: bytes posted and not yet on their way */
    uint32_t want_room;  /* atomic: somebody waits in writers */
    uint32_t asked;      /* atomic: ASK_... */
    uint32_t cancel;     /* atomic: status for ASK_CANCEL, or that of END_TOO_LARGE */
    H2Op ask;            /* the op that carries asked; kind 0 */

    H2Stream *ready_next; /* ready_lock, or the owner's list of fresh ones */
    uint8_t ready;        /* READY_...: why it is in the queue */
    void *app;            /* the application's */
    char inlined[H2_INLINE_HEAD];
};

/* What a descriptor's bytes go through.  read and write: bytes, 0 at the end (read), or a negative errno (-EAGAIN: wait).
 * Owner only; neither blocks.  The others may be NULL: there is nothing to do. */
struct H2Io {
    int (*open)(H2Conn *c, void *tls);                      /* the first call, with the listener's tls; GMP_E... */
    ssize_t (*read)(H2Conn *c, char *buf, size_t n);        /* n: H2_IN; sets c->again, c->held, clears c->shaking */
    ssize_t (*write)(H2Conn *c, const char *buf, size_t n); /* sets c->held; 0 bytes: only what it holds */
    void (*close)(H2Conn *c);                               /* the last call before the descriptor is closed */
    void (*free)(H2Conn *c);                                /* with the last reference to c */
    void (*forget)(void *tls);                              /* a listener that had it is gone */
};
extern const H2Io h2_plain;

struct H2Conn {
    uint32_t refs; /* atomic */
    H2Server *server;
    int fd;
    PollDesc *pd;
    const H2Io *io;
    void *tls; /* io's */
    char peer[128];

    Mutex lock; /* held by the owner */
    struct nghttp2_session *session;
    H2Stream *streams;
    uint32_t nstreams; /* atomic for readers without the lock */
    H2Buf *out;        /* while the owner flushes */
    char *pending;     /* output that the socket did not take */
    size_t pending_off, pending_len;
    bool held;          /* io has output of its own that the socket did not take */
    bool again;         /* the last read left something: read again before waiting */
    bool shaking;       /* io is not ready for the session's output yet */
    bool write_waiting; /* a goroutine waits until it does */
    bool broken;        /* the socket or the session failed */
    bool dead;          /* closed; atomic for readers without the lock */
    bool greeted;       /* the client's settings have come */
    bool draining, last_goaway, killed;
    bool more;                          /* the last flush was cut short */
    bool parting;                       /* close once everything is written */
    bool timer_on;                      /* timer was armed, with a reference */
    bool spoken;                        /* something has come from the client; before that nothing is sent */
    bool blamed;                        /* the application is told why it ends */
    bool condemned;                     /* it is to end now, with a GOAWAY */
    bool muted;                         /* it has got an answer, and gets no frames any more */
    bool choked;                        /* is not read from for now */
    H2Stream *to_cancel;                /* once what was sent before is flushed; references */
    H2Stream *fresh_first, *fresh_last; /* calls that came in this turn */
    uint32_t nfresh;

    int64_t last_read;                                /* atomic for readers without the lock */
    int64_t opened, idle_since, last_ping, ping_sent; /* nanotime */
    int64_t drain_by;
    int32_t strikes;
    bool data_sent; /* since the last ping that counted */

    H2Counts counts;

    /* h2_guard.c; owner */
    H2Meter resets, frames;
    uint64_t earned;         /* frames for which nothing is spent */
    uint32_t answered;       /* calls; the same for resets */
    bool in_block, had_data; /* within a header block; the DATA frame had some */
    uint32_t block_seq;
    int64_t block_since, stalled_since;
    int64_t due; /* when timer fires, 0: it is not armed */
    uint64_t block_bytes;
    uint64_t received;  /* bytes of requests kept, ever */
    uint64_t taken;     /* atomic: and let go of */
    uint32_t orphans;   /* atomic: calls that have ended early and are not forgotten yet */
    uint32_t unstarted; /* ready_lock; atomic for readers without it: in the queue of calls */

    H2Op *outbox;        /* atomic: a stack; see h2_post */
    uint32_t unflushed;  /* atomic: posted since the last flush */
    Timer timer;         /* housekeeping */
    uint32_t chores;     /* atomic: CHORE_... */
    H2Conn *next, *prev; /* H2Server.lock */
    H2Conn *dirty_next;  /* H2Server.dirty_lock */
    bool dirty;
};
enum { CHORE_TIMER = 1, CHORE_DRAIN = 2, CHORE_KILL = 4 };

struct H2Method {
    H2Method *next; /* of the bucket; never unlinked */
    uint32_t hash, len;
    bool unary; /* takes one request: handed over with it */
    void *app;
    char path[];
};
#define H2_BUCKETS 256

typedef struct H2Listener {
    struct H2Listener *next;
    H2Server *server;
    int fd;
    PollDesc *pd;
    const H2Io *io;
    void *tls; /* handed to io's connections */
    bool running;
} H2Listener;

enum { READY_CALL = 1, READY_END = 2, READY_NOTICE = 4 };

struct H2Server {
    uint32_t refs; /* atomic */
    H2Options options;
    H2Method *methods[H2_BUCKETS]; /* atomic heads */

    Mutex lock;
    H2Server *next; /* of those that run; servers_lock */
    H2Listener *listeners;
    H2Conn *conns;
    uint32_t nconns, naccepting;
    bool started, draining;
    bool killed; /* atomic for readers without the lock */

    Mutex ready_lock;
    H2Stream *ready_first, *ready_last;
    uint32_t nready; /* atomic for readers without the lock */
    bool done;       /* drained: nothing will come any more */
    bool notice;     /* the application is to look at news and at what credentials ask for */
    WaitQ takers;
    char news[H2_NEWS][H2_NEWS_SIZE];
    uint32_t news_first, nnews;
    uint64_t whys[H2_WHYS];   /* how often */
    uint32_t untold[H2_WHYS]; /* since the last that was told */
    int64_t told[H2_WHYS];    /* nanotime */

    Mutex dirty_lock;
    H2Conn *dirty;       /* that have something posted and not flushed; atomic for readers without the lock */
    int64_t dirty_since; /* nanotime of the oldest; atomic for readers without the lock */

    /* Counters; atomic. */
    uint64_t accepted, calls, resets;
};

/* ---- h2_server.c ---- */
/* In the child of a fork: forgets all servers, whose locks may be held for ever, and closes their descriptors. */
void h2_afterfork_child(void);
H2Server *h2_server_new(const H2Options *options);
void h2_server_free(H2Server *srv);
void h2_server_unref(H2Server *srv);
/* The listening, non-blocking fd becomes the server's.  0 or an errno. */
int h2_listen(H2Server *srv, int fd, const H2Io *io, void *tls);
int h2_start(H2Server *srv);
/* No new connections, and no new calls on the ones there are; those under way go on. */
void h2_drain(H2Server *srv);
/* Ends them, too. */
void h2_kill(H2Server *srv);
/* Parks until a call is there for the application, or (READY_END) one that has ended early and is to be told so: with a reference.
 * Or (READY_NOTICE), with no stream, that there is something to log (h2_news) or that credentials wait for certificates.
 * GMP_ECLOSED: drained, and nothing will come any more. */
int h2_take(H2Server *srv, H2Stream **st, int *why);
void h2_notice(H2Server *srv);
bool h2_news(H2Server *srv, char text[H2_NEWS_SIZE]); /* false: there is none */
/* Sends what was posted, on the calling thread, but for what others are sending.  False: there was nothing. */
bool h2_flush_dirty(H2Server *srv);
/* The same for all servers that run: for Sched.before_idle. */
bool h2_flush_all(void);
/* What was posted FLUSH_NS ago and more is sent by native goroutines, now.  For all servers: Sched.overdue. */
void h2_flush_overdue(H2Server *srv);
void h2_flush_all_overdue(void);
/* The method for a path is known from now on; the first one counts.  NULL: no memory. */
H2Method *h2_learn(H2Server *srv, const char *path, uint32_t len, bool unary, void *app);
H2Method *h2_find(H2Server *srv, const char *path, uint32_t len);
void h2_ready(H2Server *srv, H2Stream *first, H2Stream *last, uint32_t n, int why);
void h2_conn_gone(H2Conn *c);
void h2_mark_dirty(H2Conn *c);

/* ---- h2_stream.c: for the application ---- */
void h2_stream_ref(H2Stream *st);
void h2_stream_unref(H2Stream *st);
/* An op with room for data.  NULL: no memory. */
H2Op *h2_op_new(H2Stream *st, int kind, size_t data);
void h2_op_free(H2Op *op);
/* The most of metadata and details that nghttp2 sends in one go; applications are held to half of it. */
#define H2_MAX_HEAD_SENT (16 * 1024 * 1024)
/* Hands op over, to be sent by the next h2_flush_dirty. */
void h2_post(H2Op *op);
void h2_ask(H2Stream *st, uint32_t what, bool flush);
/* Ends the call from the application's side, as a client's cancellation would; the client gets this status. */
void h2_cancel(H2Stream *st, uint32_t status);
/* The next message, NULL at the end of the requests.  GMP_OK; GMP_ECLOSED: the call has ended; GMP_ETIMEDOUT, GMP_EINTR. */
int h2_recv(H2Stream *st, H2Msg **msg, int64_t timeout);
bool h2_recv_ready(H2Stream *st); /* it would not wait */
/* Parks until the client has taken so much of what was posted that more may be. */
int h2_wait_room(H2Stream *st, int64_t timeout);
/* Bytes that may be posted and not yet sent: so many for all calls of a connection, when none of them is read. */
#define H2_ROOM (64 * 1024)
#define H2_CONN_ROOM (16 * 1024 * 1024)
static inline uint32_t
h2_room(const H2Stream *st)
{
    uint32_t n = atomic_load_relaxed(&st->conn->nstreams);
    return n <= H2_CONN_ROOM / H2_ROOM ? H2_ROOM : H2_CONN_ROOM / n;
}
static inline bool
h2_has_room(H2Stream *st)
{
    return atomic_load_relaxed(&st->out_queued) <= h2_room(st);
}
static inline H2End
h2_ended(H2Stream *st)
{
    return (H2End)atomic_load_acquire(&st->ended); /* pairs with end_stream */
}
/* Ask to be told (READY_END) when the call ends early.  False: it has. */
bool h2_notify_end(H2Stream *st);
/* The application has sent its status: from now on nothing ends it early.  False: it was ended before. */
bool h2_finish(H2Stream *st);

/* ---- h2_conn.c: for h2_server.c and h2_stream.c ---- */
/* A connection on fd, run by a goroutine of its own. */
int h2_conn_start(H2Server *srv, int fd, const H2Io *io, void *tls, const struct sockaddr_storage *peer, socklen_t len);
void h2_conn_unref(H2Conn *c);
void h2_conn_chore(H2Conn *c, uint32_t what);
void h2_conn_flush(H2Conn *c);
void h2_conn_kick(H2Conn *c); /* its goroutine has a look */

/* ---- h2_guard.c ---- */
void h2_tell(H2Server *srv, H2Why why, const char *fmt, ...) GMP_PRINTF(3, 4); /* any thread */

/* ---- h2_io.c ---- */
void h2_large_message(uint32_t n); /* bytes: one has come, or is to go; any thread */
void h2_linger(H2Conn *c);         /* parks: what was sent last is to arrive, though the client still sends */
void h2_io_afterfork_child(void);
#define H2_IN (64 * 1024)
#define H2_OUT (96 * 1024)
struct H2Buf {
    H2Buf *next;
    size_t len; /* of out */
    char in[H2_IN];
    char out[H2_OUT];
};
H2Buf *h2_buf_get(void); /* NULL: no memory */
void h2_buf_put(H2Buf *b);
void h2_peer_name(char *out, size_t size, const struct sockaddr_storage *peer, socklen_t len);

/* ---- h2_tls.c, or h2_notls.c ---- */
/* Credentials: what the listeners of one or more servers share; replaceable while they serve. */
typedef struct H2Pem {
    const char *data;
    size_t len;
} H2Pem;
/* OpenSSL is there from now on; folder: where to look when the system has none, or NULL.  False, and why. */
bool h2_tls_load(const char *folder, char *why, size_t size);
H2Tls *h2_tls_new(void); /* NULL: no memory */
void h2_tls_ref(H2Tls *tls);
void h2_tls_unref(H2Tls *tls);
/* Puts these in place of what connections to come are served with: n keys, n chains, and the roots that clients' certificates are
 * checked by (NULL: clients are not asked for any).  False, and why: nothing has changed. */
bool h2_tls_set(H2Tls *tls, const H2Pem *keys, const H2Pem *chains, uint32_t n, const H2Pem *roots, char *why,
                size_t size);
/* From now on each new connection waits until it is released, and the server's application gets a notice. */
void h2_tls_hold(H2Tls *tls);
/* A mark for all that wait now; 0: nobody does. */
uint64_t h2_tls_waiting(H2Tls *tls);
void h2_tls_release(H2Tls *tls, uint64_t mark);
/* What is known of a client by TLS: pairs, one after the other; NULL with n = 0: no TLS, or no memory.  Valid while c is. */
const char *h2_tls_peer(H2Conn *c, uint32_t *n);
/* False: no TLS.  Empty while the handshake is under way. */
bool h2_tls_security(H2Conn *c, const char **version, const char **cipher);
extern const H2Io h2_tls;
/* No thread is inside OpenSSL between these two, so that the child of a fork finds its locks free.  In the child: ..._child. */
void h2_tls_before_fork(void);
void h2_tls_after_fork(void);
void h2_tls_afterfork_child(void);
/* ---- h2_text.c ---- */
int64_t h2_parse_timeout(const uint8_t *s, size_t n);
int h2_encoding_of(const uint8_t *s, size_t n);
uint8_t h2_encodings_in(const uint8_t *s, size_t n);
size_t h2_base64_encode(char *out, const uint8_t *in, size_t n);
ptrdiff_t h2_base64_decode(char *out, const char *in, size_t n);
bool h2_is_base64(const uint8_t *s, size_t n);
size_t h2_percent_encode(char *out, const char *in, size_t n);

/* ---- h2_native.c ---- */
#define H2_SET (&scheds[SET_NATIVE])
int h2_native_start(void);                   /* the native set runs */
int h2_go(void (*fn)(void *arg), void *arg); /* GMP_ENOMEM */

#endif
