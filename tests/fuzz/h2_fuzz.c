/* h2_fuzz.c: the gRPC engine fed with whatever comes, one connection per input: an entry for libFuzzer, and for replay.c.
 *
 * The engine is the real one (csrc/h2_*.c and nghttp2); the runtime under it is played here, on one thread and with a clock of its own, so
 * that an input always does the same: goroutines are function calls, waiting is going on with the input, timers fire when the input lets
 * time pass.  A lock that is taken twice, a wait where none may be, and a frame that is none end the process.
 *
 * An input: a byte of MODE_ bits, then records: a byte that says what (enum), and what belongs to it.  Sizes have two bytes, big-endian.
 */
#include "h2_conn.h"

#include <errno.h>
#include <stdio.h>
#include <sys/un.h>

enum {
    MODE_GREETED = 1, /* the client's preface and settings come first */
    MODE_STRICT = 2,  /* small limits */
    MODE_ECHO = 4,    /* the application answers by itself after each record */
    MODE_CHOPPED = 8, /* what comes is read byte by byte */
    MODE_HURRY = 16,  /* short timeouts */
};
enum {
    REC_BYTES,   /* size, bytes: come in one read */
    REC_FRAME,   /* type, flags, stream, size, payload */
    REC_REQUEST, /* flags, stream, which, size, text: HEADERS of a call; text is the value of a header, chosen by which */
    REC_CALL,    /* which, what, size: the application does something with one of its calls */
    REC_TIME,    /* exponent: time passes */
    REC_ROOM,    /* size: so many bytes more can be written; until the first of these, any number */
    REC_SERVER,  /* drain, or kill */
    REC_TEXT,    /* size, text: for the functions of h2_text.c alone */
    RECS
};

#define CHECK(cond)                                                                                                    \
    do {                                                                                                               \
        if (!(cond)) {                                                                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond);                                                 \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

#define CALLS 16
#define TASKS 8
#define TIMERS 64
#define INCOMING (1 << 18)

static struct {
    const uint8_t *data;
    size_t size, at;
    uint8_t mode;
    int64_t now;
    H2Server *server;
    H2Stream *calls[CALLS];
    struct {
        void (*fn)(void *arg);
        void *arg;
    } tasks[TASKS];
    int ntasks;
    struct {
        Timer *timer;
        int64_t when;
        TimerFn fn;
        void *arg;
        uint32_t seq;
    } timers[TIMERS];
    int ntimers;
    uint8_t in[INCOMING];
    size_t in_at, in_len;
    size_t room; /* SIZE_MAX: any */
    bool kicked, over, evicted;
    PollDesc pd;
    /* what the client has got */
    uint8_t head[9];
    size_t nhead, payload;
    bool plain; /* an answer in HTTP/1 */
    nghttp2_hd_deflater *deflater;
} w;

static void echo_all(void);

/* ---- the runtime ---- */

Sched scheds[2];

void
gmp_throw(const char *fmt, ...)
{
    fprintf(stderr, "gmp_throw: %s\n", fmt);
    abort();
}

void
mutex_lock_slow(Mutex *mu)
{
    (void)mu;
    gmp_throw("a lock is taken twice");
}

void
mutex_unlock_slow(Mutex *mu)
{
    (void)mu;
    gmp_throw("unlock of an unlocked mutex");
}

int64_t
nanotime(void)
{
    return w.now;
}

Sudog *
waitq_pop(WaitQ *q)
{
    CHECK(q->first == NULL); /* the application never waits */
    return NULL;
}

bool
waitq_wake(WaitQ *q)
{
    return waitq_pop(q) != NULL;
}

void
goready(G *gp)
{
    (void)gp;
    gmp_throw("nobody waits");
}

int
waitq_park(WaitQ *q, Mutex *lock, bool front, WaitReason reason, int64_t timeout)
{
    (void)q, (void)lock, (void)front, (void)reason, (void)timeout;
    gmp_throw("the application waits");
}

int
timer_arm(Sched *sched, Timer *t, int64_t when, TimerFn fn, void *arg, uint32_t seq)
{
    (void)sched;
    if (w.ntimers == TIMERS)
        return GMP_ENOMEM;
    for (int i = 0; i < w.ntimers; i++)
        CHECK(w.timers[i].timer != t);
    w.timers[w.ntimers].timer = t;
    w.timers[w.ntimers].when = when;
    w.timers[w.ntimers].fn = fn;
    w.timers[w.ntimers].arg = arg;
    w.timers[w.ntimers++].seq = seq;
    return GMP_OK;
}

bool
timer_del(Timer *t)
{
    for (int i = 0; i < w.ntimers; i++)
        if (w.timers[i].timer == t) {
            w.timers[i] = w.timers[--w.ntimers];
            return true;
        }
    return false;
}

static void
pass(int64_t ns)
{
    w.now += ns;
    for (int i = 0; i < w.ntimers;) {
        if (w.timers[i].when > w.now) {
            i++;
            continue;
        }
        TimerFn fn = w.timers[i].fn;
        void *arg = w.timers[i].arg;
        uint32_t seq = w.timers[i].seq;
        w.timers[i] = w.timers[--w.ntimers];
        fn(arg, seq);
        i = 0;
    }
}

static void
run_tasks(void)
{
    for (int i = 0; i < TASKS && w.ntasks != 0 && (w.room != 0 || w.evicted); i++) {
        w.ntasks--;
        w.tasks[w.ntasks].fn(w.tasks[w.ntasks].arg);
    }
}

int
h2_go(void (*fn)(void *arg), void *arg)
{
    if (w.ntasks == TASKS)
        return GMP_ENOMEM;
    w.tasks[w.ntasks].fn = fn;
    w.tasks[w.ntasks++].arg = arg;
    return GMP_OK;
}

int
h2_native_start(void)
{
    return 0;
}

bool
gosched(void)
{
    return false;
}

int
gosleep(int64_t ns)
{
    echo_all();
    run_tasks();
    pass(ns);
    return GMP_OK;
}

int
netpoll_open(Sched *set, int fd, PollDesc **out)
{
    (void)set, (void)fd;
    *out = &w.pd;
    return 0;
}

void
netpoll_evict(PollDesc *pd)
{
    (void)pd;
    w.evicted = true;
}

bool
netpoll_close(PollDesc *pd)
{
    (void)pd;
    return true;
}

void
netpoll_kick(PollDesc *pd, PollMode mode)
{
    (void)pd, (void)mode;
    w.kicked = true;
}

/* ---- the socket ---- */

static ssize_t
fuzz_read(H2Conn *c, char *buf, size_t n)
{
    size_t have = w.in_len - w.in_at;
    c->again = false;
    if (have == 0)
        return w.over ? 0 : -EAGAIN;
    if (n > have)
        n = have;
    if (w.mode & MODE_CHOPPED)
        n = 1;
    memcpy(buf, w.in + w.in_at, n);
    w.in_at += n;
    c->again = n < have;
    return (ssize_t)n;
}

/* What the server sends is a sequence of frames. */
static void
got(const uint8_t *p, size_t n)
{
    if (w.nhead == 0 && w.payload == 0 && n >= 8 && memcmp(p, "HTTP/1.1", 8) == 0)
        w.plain = true;
    while (n != 0 && !w.plain) {
        if (w.payload != 0) {
            size_t k = w.payload < n ? w.payload : n;
            w.payload -= k;
            p += k;
            n -= k;
            continue;
        }
        w.head[w.nhead++] = *p++;
        n--;
        if (w.nhead < 9)
            continue;
        w.nhead = 0;
        w.payload = (size_t)w.head[0] << 16 | (size_t)w.head[1] << 8 | w.head[2];
        CHECK(w.head[3] <= NGHTTP2_CONTINUATION);
        CHECK(w.payload <= 16384);
    }
}

static ssize_t
fuzz_write(H2Conn *c, const char *buf, size_t n)
{
    (void)c;
    if (w.room != SIZE_MAX) {
        if (n > w.room)
            n = w.room;
        if (n == 0)
            return -EAGAIN;
        w.room -= n;
    }
    got((const uint8_t *)buf, n);
    return (ssize_t)n;
}

static const H2Io fuzz_io = {.read = fuzz_read, .write = fuzz_write};

static void
comes(const void *p, size_t n)
{
    if (n > INCOMING - w.in_len)
        n = INCOMING - w.in_len;
    memcpy(w.in + w.in_len, p, n);
    w.in_len += n;
}

/* ---- the application ---- */

static void
forget(int i)
{
    H2Stream *st = w.calls[i];
    w.calls[i] = NULL;
    if (h2_ended(st) == END_NOT)
        h2_cancel(st, GRPC_UNKNOWN);
    h2_stream_unref(st);
}

static void
post(H2Stream *st, int kind, uint32_t size, uint32_t status)
{
    bool status_too = (kind & (OP_STATUS | OP_ABORT)) != 0;
    uint32_t message = kind & OP_MESSAGE ? 5 + size : 0, details = status_too ? size % 7 : 0;
    H2Op *op = h2_op_new(st, kind, message + 64 + details);
    CHECK(op != NULL);
    memset(h2_op_data(op), 'x', message + 64 + details);
    if (message != 0) {
        h2_op_data(op)[0] = 0;
        for (int i = 0; i < 4; i++)
            h2_op_data(op)[1 + i] = (char)(size >> (24 - 8 * i));
    }
    op->message = message;
    op->encoding = (uint8_t)(size % 3);
    char *at = h2_op_data(op) + message;
    if (kind & OP_HEAD && size % 2) {
        at = h2_put_pair(at, "k", 1, "value", 5);
        op->nhead = 1;
        op->head = (uint32_t)(at - h2_op_data(op)) - message;
    }
    op->details = details;
    at += details;
    if (status_too && size % 5 == 1) {
        char *end = h2_put_pair(at, "t-bin", 5, "AAAA", 4);
        op->ntrail = 1;
        op->trail = (uint32_t)(end - at);
    }
    op->status = status;
    h2_post(op);
}

static void
take_all(void)
{
    H2Stream *st;
    int why;
    char text[H2_NEWS_SIZE];
    while (atomic_load(&w.server->nready) != 0 || w.server->notice) {
        CHECK(h2_take(w.server, &st, &why) == GMP_OK);
        if (why == READY_NOTICE) {
            while (h2_news(w.server, text)) {
                CHECK(strlen(text) < H2_NEWS_SIZE);
                if (getenv("H2_FUZZ_TELL") != NULL)
                    fprintf(stderr, "\n%s\n", text);
            }
            continue;
        }
        if (why == READY_END) {
            h2_stream_unref(st);
            continue;
        }
        const char *at = st->head + st->path_len;
        for (uint32_t i = 0; i < st->npairs; i++) {
            H2Pair p;
            at = h2_pair(at, &p);
            CHECK(at <= st->head + st->head_len);
        }
        int i = 0;
        while (i < CALLS && w.calls[i] != NULL)
            i++;
        if (i == CALLS)
            forget(i = (int)(w.now % CALLS));
        w.calls[i] = st;
    }
}

static void
take_message(H2Stream *st, bool answer)
{
    H2Msg *m;
    if (!h2_recv_ready(st))
        return;
    int code = h2_recv(st, &m, 0);
    if (code == GMP_OK && m != NULL) {
        uint32_t sum = 0;
        for (uint32_t i = 0; i < m->len; i++)
            sum += (uint8_t)m->data[i];
        if (answer && h2_has_room(st))
            post(st, OP_MESSAGE | OP_HEAD, m->len + sum % 2, 0);
        free(m);
    }
    else if (code == GMP_OK && answer && h2_finish(st)) {
        post(st, OP_STATUS | OP_HEAD, 0, GRPC_OK);
    }
}

static void
echo_all(void)
{
    take_all();
    for (int i = 0; i < CALLS; i++)
        for (int k = 0; k < 3 && w.calls[i] != NULL; k++) {
            take_message(w.calls[i], true);
            if (h2_ended(w.calls[i]) != END_NOT)
                forget(i);
        }
    h2_flush_dirty(w.server);
}

static void
act(uint8_t which, uint8_t what, uint32_t size)
{
    take_all();
    H2Stream *st = w.calls[which % CALLS];
    if (st == NULL)
        return;
    switch (what % 9) {
    case 0:
        take_message(st, false);
        break;
    case 1:
        post(st, OP_HEAD, size, 0);
        break;
    case 2:
        if (h2_has_room(st))
            post(st, OP_HEAD | OP_MESSAGE, size * 4, 0);
        if (h2_has_room(st))
            CHECK(h2_wait_room(st, 0) != GMP_ETIMEDOUT);
        break;
    case 3:
        if (h2_finish(st))
            post(st, OP_HEAD | OP_STATUS, size, size % 17);
        break;
    case 4:
        if (h2_finish(st))
            post(st, OP_HEAD | OP_MESSAGE | OP_STATUS, size, 0);
        break;
    case 5:
        h2_cancel(st, size % 17);
        break;
    case 6:
        (void)h2_notify_end(st);
        break;
    case 7:
        forget(which % CALLS);
        break;
    default:
        h2_flush_dirty(w.server);
        break;
    }
}

/* ---- the input ---- */

static uint32_t
byte(void)
{
    return w.at < w.size ? w.data[w.at++] : 0;
}

static const uint8_t *
bytes(size_t *n)
{
    size_t size = byte() << 8;
    size |= byte();
    if (size > w.size - w.at)
        size = w.size - w.at;
    const uint8_t *p = w.data + w.at;
    w.at += size;
    *n = size;
    return p;
}

static void
frame(uint8_t type, uint8_t flags, uint32_t id, const uint8_t *payload, size_t n)
{
    uint8_t head[9] = {(uint8_t)(n >> 16), (uint8_t)(n >> 8), (uint8_t)n, type, flags, 0, 0, 0, (uint8_t)id};
    comes(head, sizeof head);
    comes(payload, n);
}

static nghttp2_nv
nv(const char *name, const void *value, size_t n)
{
    return (nghttp2_nv){(uint8_t *)name, (uint8_t *)value, strlen(name), n, NGHTTP2_NV_FLAG_NONE};
}

static void
request(uint8_t flags, uint32_t id, uint8_t which, const uint8_t *text, size_t n)
{
    static const char *const names[] = {"grpc-timeout", "grpc-encoding", "grpc-accept-encoding", "x-bin", "x", ":path",
                                        "content-type", "te", ":method"};
    static const uint8_t places[] = {6, 6, 6, 6, 6, 2, 4, 5, 0};
    uint8_t kind = which / 2 % 9;
    nghttp2_nv nva[] = {nv(":method", "POST", 4), nv(":scheme", "http", 4), nv(":path", which % 2 ? "/a/A" : "/u/U", 4),
                        nv(":authority", "x", 1), nv("content-type", "application/grpc", 16), nv("te", "trailers", 8),
                        nv(names[kind], text, n)};
    uint8_t block[4096];
    nva[places[kind]] = nva[6];
    if (n > 2000)
        return;
    ssize_t len = nghttp2_hd_deflate_hd(w.deflater, block, sizeof block, nva, places[kind] == 6 ? 7 : 6);
    if (len > 0)
        frame(NGHTTP2_HEADERS, flags | NGHTTP2_FLAG_END_HEADERS, id, block, (size_t)len);
}

static void
texts(const uint8_t *s, size_t n)
{
    char *out = malloc(3 * n + 4), *back = malloc(3 * n + 4);
    (void)h2_parse_timeout(s, n);
    (void)h2_encodings_in(s, n);
    CHECK(h2_base64_decode(out, (const char *)s, n) <= (ptrdiff_t)n);
    size_t coded = h2_base64_encode(out, s, n);
    CHECK(h2_base64_decode(back, out, coded) == (ptrdiff_t)n && memcmp(back, s, n) == 0);
    size_t percent = h2_percent_encode(out, (const char *)s, n);
    CHECK(percent >= n && percent <= 3 * n);
    free(out);
    free(back);
}

/* The next record.  False: there is none. */
static bool
record(void)
{
    size_t n;
    if (w.at >= w.size)
        return false;
    switch (byte() % RECS) {
    case REC_BYTES: {
        const uint8_t *p = bytes(&n);
        comes(p, n);
        break;
    }
    case REC_FRAME: {
        uint8_t type = (uint8_t)byte(), flags = (uint8_t)byte(), id = (uint8_t)byte();
        const uint8_t *p = bytes(&n);
        frame(type, flags, id, p, n);
        break;
    }
    case REC_REQUEST: {
        uint8_t flags = (uint8_t)byte(), id = (uint8_t)byte(), which = (uint8_t)byte();
        const uint8_t *p = bytes(&n);
        request(flags, id, which, p, n);
        break;
    }
    case REC_CALL: {
        uint8_t which = (uint8_t)byte(), what = (uint8_t)byte();
        uint32_t size = byte() << 8;
        act(which, what, size | byte());
        break;
    }
    case REC_TIME:
        pass((int64_t)1000 << byte() % 36);
        break;
    case REC_ROOM:
        if (w.room == SIZE_MAX)
            w.room = 0;
        w.room += byte() << 8;
        w.room += byte();
        break;
    case REC_SERVER:
        if (byte() % 4 != 0)
            h2_drain(w.server);
        else
            h2_kill(w.server);
        break;
    default: {
        const uint8_t *p = bytes(&n);
        texts(p, n);
        break;
    }
    }
    return true;
}

/* A goroutine of the connection waits: the input goes on. */
int
netpoll_wait(PollDesc *pd, PollMode mode)
{
    (void)pd;
    if (w.evicted)
        return GMP_ECLOSED;
    if (mode == POLL_WRITE)
        return GMP_OK;
    if (w.in_at == w.in_len)
        w.in_at = w.in_len = 0;
    w.kicked = false;
    for (;;) {
        if (w.mode & MODE_ECHO)
            echo_all();
        run_tasks();
        bool choked = w.server->conns != NULL && w.server->conns->choked; /* then what is there makes no edge */
        if (w.kicked || (w.in_at != w.in_len && !choked))
            return GMP_OK;
        if (w.over) /* the connection has read the end, and waits all the same */
            return GMP_ECLOSED;
        if (!record()) {
            w.over = true;
            w.room = SIZE_MAX;
            run_tasks();
            CHECK(w.kicked || !choked); /* it is told when it can go on */
            return GMP_OK;
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char greeting[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0\0\0\0\4\1\0\0\0\0";
    static const int64_t ms = 1000 * 1000;
    struct sockaddr_storage peer = {.ss_family = AF_UNIX};
    memset(&w, 0, sizeof w);
    w.data = data;
    w.size = size;
    w.mode = (uint8_t)byte();
    w.now = 1000 * ms;
    w.room = SIZE_MAX;
    H2Options options = {.max_recv = 4 << 20, .stream_window = 65536, .conn_window = 1 << 20, .max_headers = 16384,
                         .max_frame = 16384, .max_streams = 100, .handshake_timeout = 120000 * ms,
                         .keepalive_time = 7200000 * ms, .keepalive_timeout = 20000 * ms, .min_ping_interval = 300000 * ms,
                         .max_ping_strikes = 2, .max_resets = 1000, .max_frames = 10000, .max_buffered = 64 << 20,
                         .header_timeout = 20000 * ms, .write_timeout = 120000 * ms};
    if (w.mode & MODE_STRICT) {
        options.max_recv = 3000;
        options.max_headers = 1000;
        options.max_streams = 5;
        options.stream_window = 2000;
        options.max_resets = 8;
        options.max_frames = 30;
        options.max_buffered = 5000;
        options.max_ping_strikes = 20;
    }
    if (w.mode & MODE_HURRY) {
        options.keepalive_time = 50 * ms;
        options.keepalive_timeout = 20 * ms;
        options.keepalive_without_calls = true;
        options.max_idle = 800 * ms;
        options.max_age = 2000 * ms;
        options.max_age_grace = 1000 * ms;
        options.handshake_timeout = 100 * ms;
        options.header_timeout = 100 * ms;
        options.write_timeout = 200 * ms;
    }
    CHECK(nghttp2_hd_deflate_new(&w.deflater, 0) == 0);
    if (w.mode & MODE_GREETED)
        comes(greeting, sizeof greeting - 1);
    w.server = h2_server_new(&options);
    CHECK(w.server != NULL && h2_learn(w.server, "/u/U", 4, true, NULL) != NULL);
    CHECK(h2_conn_start(w.server, -1, &fuzz_io, NULL, &peer, sizeof(sa_family_t)) == GMP_OK);
    CHECK(w.ntasks == 1);
    w.ntasks = 0;
    w.tasks[0].fn(w.tasks[0].arg); /* to the connection's end */
    take_all();
    for (int i = 0; i < CALLS; i++)
        if (w.calls[i] != NULL)
            forget(i);
    h2_flush_dirty(w.server);
    take_all();
    for (int i = 0; i < CALLS; i++)
        if (w.calls[i] != NULL)
            forget(i);
    h2_flush_dirty(w.server);
    h2_drain(w.server);
    CHECK(w.ntasks == 0 && w.server->nconns == 0 && w.server->done);
    pass(INT64_MAX / 4);
    CHECK(w.server->refs == 1); /* so the connection is gone, and with it every call */
    h2_server_free(w.server);
    nghttp2_hd_deflate_del(w.deflater);
    return 0;
}
