/* py_grpc.c: gmp._core.GrpcServer and GrpcCall: the engine's calls (h2.h) as Python goroutines.
 *
 * How a call runs
 *   1. The dispatching goroutine (GrpcServer.dispatch) parks in h2_take.  For each call it makes a context, an instance of the
 *      subclass of GrpcCall that gmp.grpc brings (gmp/grpc/_context.py), and starts a goroutine: run_call(context).
 *   2. A method with one request and one response whose handler is known runs in run_unary: parse, handler, serialize, one op.
 *      All others, and whatever goes wrong, are gmp/grpc/_call.py's, which uses the private methods of GrpcCall.
 *   3. What is sent is posted to the connection and flushed when the goroutines have nothing else to do (h2_conn.c).
 * A call that ends early (reset, deadline ...) wakes who waits in it.  If it has callbacks, it comes through h2_take once
 * more, and a goroutine calls them.
 *
 * H2Stream.app is the GrpcCall, borrowed; set and cleared with the GIL, as is everything here.
 */
#include "h2.h"
#include "py_gmp.h"
#include "py_tls.h"

#include <errno.h>

#define CODES 17
#define BUCKETS 24 /* of latencies: up to 2, 4, 8 ... us, the last one for all that is longer */

/* What is counted of a method's calls. */
typedef struct Counts {
    uint64_t codes[CODES], buckets[BUCKETS];
    int64_t ns; /* sum of latencies */
} Counts;

typedef struct GrpcMethod {
    struct GrpcMethod *next;
    H2Method *known;
    Counts counts;
    PyObject *handler;                              /* grpc.RpcMethodHandler; NULL: to be looked up for each call */
    PyObject *behavior, *deserializer, *serializer; /* of a unary-unary one; NULL: none */
    bool fast;
} GrpcMethod;

typedef struct GrpcServer {
    PyObject_HEAD
    H2Server *srv;
    uint32_t
        generation; /* of the process: a forked child's servers are dead, and what they point to is not to be touched */
    PyTypeObject *context_type;
    PyObject *serve;  /* serve(context, handler or None): what run_unary does not do */
    PyObject *failed; /* failed(context, stage, exception or None) */
    GrpcMethod *methods;
    Counts others;        /* of calls to no known method */
    PyObject *access_log; /* access_log(path, peer, code, seconds), or NULL */
    PyObject *notice;     /* notice(): warnings() may have one, credentials may wait; NULL */
    int64_t max_send;
    Py_ssize_t active, maximum; /* calls that run; maximum < 0: any number */
    int compression;
    Py_ssize_t ending; /* goroutines on their way to call callbacks */
    WaitQ ended;       /* GIL: dispatch waits there until there are none */
} GrpcServer;

typedef struct GrpcCall {
    PyObject_HEAD
    H2Stream *st;
    GrpcServer *server;
    PyObject *metadata, *code, *details, *trailing, *callbacks;
    int compression;   /* -1: the server's */
    int announced;     /* the encoding that the initial metadata named, once it was sent */
    bool head_allowed; /* the initial metadata was not sent yet */
    bool aborted;      /* by abort() */
    bool finished;     /* the status was sent */
    bool plain_next;   /* disable_next_message_compression */
    bool callbacks_done;
    bool entered; /* counts as active */
    bool counted; /* its end was */
} GrpcCall;

static PyTypeObject GrpcServer_Type, GrpcCall_Type;
static void account_early(GrpcCall *call);
static uint32_t generation;
static PyObject *run_call_fn, *run_callbacks_fn;
static PyObject *status_codes;  /* {grpc.StatusCode: int} */
static PyObject *metadatum;     /* metadatum(key, value) */
static PyObject *current_var;   /* gmp.context's ContextVar: the call that a goroutine serves, or a part of */
static PyObject *decompress_fn; /* decompress(encoding, data, most) */
static PyObject *compress_fn;   /* compress(encoding, data) */

/* ---- bytes to send ---- */

typedef struct Blob {
    char *data;
    size_t len, cap;
    uint32_t n;
} Blob;

static char *
blob_room(Blob *b, size_t n)
{
    if (b->data == NULL || b->len + n > b->cap) {
        size_t cap = (b->len + n) * 2 + 16;
        char *data = PyMem_RawRealloc(b->data, cap);
        if (data == NULL) {
            PyErr_NoMemory();
            return NULL;
        }
        b->data = data;
        b->cap = cap;
    }
    return b->data + b->len;
}

/* A str as UTF-8, or bytes: borrowed from o. */
static int
as_bytes(PyObject *o, const char **data, Py_ssize_t *n)
{
    if (PyBytes_Check(o)) {
        *data = PyBytes_AS_STRING(o);
        *n = PyBytes_GET_SIZE(o);
        return 0;
    }
    if (PyUnicode_Check(o)) {
        *data = PyUnicode_AsUTF8AndSize(o, n);
        return *data == NULL ? -1 : 0;
    }
    PyErr_Format(PyExc_TypeError, "expected str or bytes, not %.200s", Py_TYPE(o)->tp_name);
    return -1;
}

/* Names that are gRPC's own on the wire: what a handler sets under them is not sent, as with grpcio. */
static bool
is_reserved(const char *k, Py_ssize_t n)
{
    static const char *const names[] = {"te",           "content-type",  "grpc-status",
                                        "grpc-message", "grpc-encoding", "grpc-accept-encoding"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if ((size_t)n == strlen(names[i]) && memcmp(k, names[i], (size_t)n) == 0)
            return true;
    return false;
}

static int
put_metadatum(Blob *b, PyObject *key, PyObject *value)
{
    const char *k, *v;
    Py_ssize_t nk, nv;
    if (as_bytes(key, &k, &nk) < 0 || as_bytes(value, &v, &nv) < 0)
        return -1;
    bool legal = nk > 0;
    for (Py_ssize_t i = 0; i < nk && legal; i++)
        legal =
            (k[i] >= 'a' && k[i] <= 'z') || (k[i] >= '0' && k[i] <= '9') || k[i] == '-' || k[i] == '_' || k[i] == '.';
    bool binary = nk > 4 && memcmp(k + nk - 4, "-bin", 4) == 0;
    for (Py_ssize_t i = 0; i < nv && legal && !binary; i++)
        legal = (uint8_t)v[i] >= 0x20 && (uint8_t)v[i] <= 0x7e;
    while (!binary && nv > 0 && *v == ' ') /* HTTP/2 has no blanks at the ends of a value */
        v++, nv--;
    while (!binary && nv > 0 && v[nv - 1] == ' ')
        nv--;
    if (!legal || nk > 65535 || nv > (1 << 24)) {
        PyErr_Format(PyExc_ValueError, "metadata was invalid: (%R, %R)", key, value);
        return -1;
    }
    if (is_reserved(k, nk))
        return 0;
    char *to = blob_room(b, H2_PAIR_HEAD + (size_t)nk + (binary ? (size_t)(nv + 2) / 3 * 4 : (size_t)nv));
    if (to == NULL)
        return -1;
    uint32_t nl = (uint32_t)nk, vl = (uint32_t)nv;
    char *at = to + H2_PAIR_HEAD + nl;
    memcpy(to + H2_PAIR_HEAD, k, nl);
    if (binary)
        vl = (uint32_t)h2_base64_encode(at, (const uint8_t *)v, (size_t)nv);
    else
        memcpy(at, v, vl);
    memcpy(to, &nl, sizeof nl);
    memcpy(to + sizeof nl, &vl, sizeof vl);
    b->len += H2_PAIR_HEAD + nl + vl;
    if (++b->n > 10000) {
        PyErr_SetString(PyExc_ValueError, "metadata was invalid: too many entries");
        return -1;
    }
    return 0;
}

/* Appends an iterable of (key, value) to b; NULL and None are empty. */
static int
put_metadata(Blob *b, PyObject *metadata)
{
    if (metadata == NULL || metadata == Py_None)
        return 0;
    PyObject *list = PySequence_Fast(metadata, "metadata must be a sequence of (key, value)");
    if (list == NULL)
        return -1;
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(list); i++) {
        PyObject *pair =
            PySequence_Fast(PySequence_Fast_GET_ITEM(list, i), "metadata must be a sequence of (key, value)");
        int r = -1;
        if (pair != NULL && PySequence_Fast_GET_SIZE(pair) == 2)
            r = put_metadatum(b, PySequence_Fast_GET_ITEM(pair, 0), PySequence_Fast_GET_ITEM(pair, 1));
        else if (pair != NULL)
            PyErr_SetString(PyExc_ValueError, "metadata must be a sequence of (key, value)");
        Py_XDECREF(pair);
        if (r < 0) {
            Py_DECREF(list);
            return -1;
        }
    }
    Py_DECREF(list);
    return 0;
}

/* Percent-encoded, for grpc-message; at its ends, where HTTP/2 has no blanks, these too. */
static int
put_details(Blob *b, const char *s, Py_ssize_t n)
{
    char *to = blob_room(b, (size_t)n * 3);
    if (to == NULL)
        return -1;
    b->len += h2_percent_encode(to, s, (size_t)n);
    return 0;
}

/* The encoding that messages of this call are sent with.  The client knows of one, from the initial metadata: what is set after that
 * can only be none at all. */
static int
encoding_of_call(GrpcCall *call)
{
    int e = call->compression >= 0 ? call->compression : call->server->compression;
    if (!call->head_allowed && e != call->announced)
        return ENC_IDENTITY;
    return e > 0 && (call->st->accepts & 1 << e) ? e : ENC_IDENTITY;
}

/* What is sent of a call in one go.  data: the message, NULL none.  status < 0: none. */
typedef struct Sending {
    PyObject *data, *head; /* head: the initial metadata, when it was not sent yet */
    int status;
    PyObject *details, *trailing;
} Sending;

/* Something was posted.  The scheduler flushes when this thread's P finds nothing else to run, or is taken away.  A thread that has no P,
 * because it is no M or sysmon has taken it, does it itself: all Ps may be idle, and nobody would come by.  The look comes after the
 * post: if the P is taken after the look, whoever takes it (handoffp) finds what was posted. */
static void
posted(H2Server *srv)
{
    M *mp = getm();
    P *pp = mp != NULL && mp->set == SCHED ? mp->p : NULL;
    atomic_fence(); /* pairs with sysmon's CAS on the P's owner */
    if (pp == NULL || atomic_load(&pp->owner) != ((uintptr_t)mp | P_RUNNING))
        h2_flush_dirty(srv);
}

/* 0; -1 with an exception, nothing sent. */
static int
send_op(GrpcCall *call, const Sending *s)
{
    H2Stream *st = call->st;
    Blob b = {0};
    PyObject *data = Py_XNewRef(s->data);
    int encoding = call->head_allowed || data != NULL ? encoding_of_call(call) : ENC_IDENTITY, r = -1;
    bool compressed = false;
    size_t head = 0, details = 0;
    uint32_t nhead = 0;
    if (data != NULL && encoding != ENC_IDENTITY && !call->plain_next && PyBytes_GET_SIZE(data) > 0) {
        PyObject *less = PyObject_CallFunction(compress_fn, "iO", encoding, data);
        if (less == NULL || !PyBytes_Check(less))
            goto done;
        compressed = PyBytes_GET_SIZE(less) < PyBytes_GET_SIZE(data);
        if (compressed)
            Py_SETREF(data, less);
        else
            Py_DECREF(less);
    }
    if (call->head_allowed && s->head != NULL) {
        if (put_metadata(&b, s->head) < 0)
            goto done;
        head = b.len;
        nhead = b.n;
        b.n = 0;
    }
    if (s->status >= 0) {
        if (s->details != NULL && s->details != Py_None) {
            const char *text;
            Py_ssize_t n;
            if (as_bytes(s->details, &text, &n) < 0 || put_details(&b, text, n) < 0)
                goto done;
            details = b.len - head;
        }
        if (put_metadata(&b, s->trailing) < 0)
            goto done;
    }
    if (b.len > H2_MAX_HEAD_SENT / 2) {
        PyErr_Format(PyExc_ValueError, "metadata and details of a call take %zu bytes; the most is %d", b.len,
                     H2_MAX_HEAD_SENT / 2);
        goto done;
    }
    size_t size = data != NULL ? (size_t)PyBytes_GET_SIZE(data) : 0;
    if (size > UINT32_MAX - 16) {
        PyErr_SetString(PyExc_ValueError, "a message is larger than 4 GiB");
        goto done;
    }
    size_t message = data != NULL ? size + 5 : 0;
    H2Op *op = h2_op_new(st, 0, message + b.len);
    if (op == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    op->kind = (uint8_t)((call->head_allowed ? OP_HEAD : 0) | (data != NULL ? OP_MESSAGE : 0) |
                         (s->status >= 0 ? OP_STATUS : 0));
    op->encoding = (uint8_t)encoding;
    op->message = (uint32_t)message;
    op->head = (uint32_t)head;
    op->nhead = (uint16_t)nhead;
    op->details = (uint32_t)details;
    op->trail = (uint32_t)(b.len - head - details);
    op->ntrail = (uint16_t)b.n;
    op->status = s->status >= 0 ? (uint32_t)s->status : 0;
    char *at = h2_op_data(op);
    if (data != NULL) {
        at[0] = (char)compressed;
        at[1] = (char)(size >> 24);
        at[2] = (char)(size >> 16);
        at[3] = (char)(size >> 8);
        at[4] = (char)size;
        memcpy(at + 5, PyBytes_AS_STRING(data), size);
        at += message;
    }
    if (b.len != 0)
        memcpy(at, b.data, b.len);
    if (call->head_allowed)
        call->announced = encoding;
    call->head_allowed = false;
    if (data != NULL)
        call->plain_next = false;
    h2_post(op);
    posted(call->server->srv);
    r = 0;
done:
    PyMem_RawFree(b.data);
    Py_XDECREF(data);
    return r;
}

/* ---- GrpcCall ---- */

static PyObject *
call_new(GrpcServer *server, H2Stream *st)
{
    PyTypeObject *type = server->context_type;
    GrpcCall *call = (GrpcCall *)type->tp_alloc(type, 0);
    if (call == NULL)
        return NULL;
    call->st = st; /* its reference */
    call->server = (GrpcServer *)Py_NewRef((PyObject *)server);
    call->compression = -1;
    call->head_allowed = true;
    st->app = call;
    return (PyObject *)call;
}

static int
call_traverse(PyObject *self, visitproc visit, void *arg)
{
    GrpcCall *call = (GrpcCall *)self;
    Py_VISIT(call->server);
    Py_VISIT(call->metadata);
    Py_VISIT(call->code);
    Py_VISIT(call->details);
    Py_VISIT(call->trailing);
    Py_VISIT(call->callbacks);
    return 0;
}

static int
call_clear(PyObject *self)
{
    GrpcCall *call = (GrpcCall *)self;
    Py_CLEAR(call->metadata);
    Py_CLEAR(call->code);
    Py_CLEAR(call->details);
    Py_CLEAR(call->trailing);
    Py_CLEAR(call->callbacks);
    return 0;
}

static void
call_dealloc(PyObject *self)
{
    GrpcCall *call = (GrpcCall *)self;
    PyObject_GC_UnTrack(self);
    call_clear(self);
    H2Stream *st = call->st;
    if (st != NULL && call->server->generation == generation) {
        account_early(call);
        st->app = NULL;
        if (!call->finished && h2_ended(st) == END_NOT)
            h2_cancel(st, GRPC_UNKNOWN); /* nobody is left who could answer */
        h2_stream_unref(st);
    }
    if (call->entered)
        call->server->active--;
    Py_CLEAR(call->server);
    Py_TYPE(self)->tp_free(self);
}

static H2Stream *
stream_of(PyObject *self)
{
    GrpcCall *call = (GrpcCall *)self;
    if (call->st != NULL && call->server->generation == generation)
        return call->st;
    PyErr_SetString(PyExc_RuntimeError,
                    call->st == NULL ? "a context is made by the server" : "the call is the parent process's");
    return NULL;
}

/* Waits until the call has a message, or what ends it.  A negative code, GMP_OK, or 1: an exception is set. */
static int
recv_msg(H2Stream *st, H2Msg **m)
{
    PyWait w = {.timeout = -1};
    if (!h2_recv_ready(st)) {
        h2_flush_dirty(st->conn->server); /* most likely this is what the client waits for */
        if (py_wait_begin(&w) < 0)
            return 1;
    }
    for (;;) {
        int code = h2_recv(st, m, w.timeout);
        if (code == GMP_OK || code == GMP_ECLOSED)
            return code;
        int again = py_wait_again(&w, code);
        if (again == 0)
            py_raise_code(code, "receive a message", &w);
        if (again <= 0)
            return 1;
    }
}

/* The message as bytes; frees it.  NULL with an exception: it could not be decompressed. */
static PyObject *
msg_bytes(GrpcServer *server, H2Stream *st, H2Msg *m)
{
    PyObject *data = PyBytes_FromStringAndSize(m->data, (Py_ssize_t)m->len);
    bool compressed = m->compressed;
    free(m);
    if (data != NULL && compressed)
        Py_SETREF(data, PyObject_CallFunction(decompress_fn, "iOL", (int)st->encoding, data,
                                              (long long)server->srv->options.max_recv));
    return data;
}

/* _recv(): the next message; None at the end; False: the call has ended. */
static PyObject *
call_recv(PyObject *self, PyObject *unused)
{
    H2Stream *st = stream_of(self);
    H2Msg *m = NULL;
    if (st == NULL)
        return NULL;
    switch (recv_msg(st, &m)) {
    case GMP_OK:
        if (m == NULL)
            Py_RETURN_NONE;
        return msg_bytes(((GrpcCall *)self)->server, st, m);
    case GMP_ECLOSED:
        Py_RETURN_FALSE;
    default:
        return NULL;
    }
}

/* _send(bytes, wait=True): True while the call is active. */
static PyObject *
call_send(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    H2Stream *st = stream_of(self);
    if (st == NULL)
        return NULL;
    if (nargs < 1 || !PyBytes_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "a serialized message must be bytes");
        return NULL;
    }
    bool wait = nargs < 2 || args[1] == Py_True;
    if (h2_ended(st) != END_NOT)
        Py_RETURN_FALSE;
    Sending s = {.data = args[0], .status = -1};
    if (send_op((GrpcCall *)self, &s) < 0)
        return NULL;
    if (wait && !h2_has_room(st)) {
        PyWait w = {.timeout = -1};
        h2_flush_dirty(st->conn->server);
        for (;;) {
            if (py_wait_begin(&w) < 0)
                return NULL;
            int code = h2_wait_room(st, w.timeout);
            if (code == GMP_OK)
                break;
            if (code == GMP_ECLOSED)
                Py_RETURN_FALSE;
            int again = py_wait_again(&w, code);
            if (again == 0)
                py_raise_code(code, "send a message", &w);
            if (again <= 0)
                return NULL;
        }
    }
    return PyBool_FromLong(h2_ended(st) == END_NOT);
}

/* _start(metadata): sends the initial metadata.  False: the call has ended; ValueError: it was sent before. */
static PyObject *
call_start(PyObject *self, PyObject *metadata)
{
    GrpcCall *call = (GrpcCall *)self;
    H2Stream *st = stream_of(self);
    if (st == NULL)
        return NULL;
    H2End ended = h2_ended(st);
    if (ended != END_NOT && ended != END_STATUS)
        Py_RETURN_FALSE;
    if (!call->head_allowed) {
        PyErr_SetString(PyExc_ValueError, "Initial metadata no longer allowed!");
        return NULL;
    }
    Sending s = {.head = metadata, .status = -1};
    if (send_op(call, &s) < 0)
        return NULL;
    Py_RETURN_TRUE;
}

static int
code_number(PyObject *code)
{
    if (code == NULL || code == Py_None)
        return GRPC_OK;
    PyObject *number = PyDict_GetItemWithError(status_codes, code);
    if (number == NULL) {
        PyErr_Clear();
        return GRPC_UNKNOWN;
    }
    return (int)PyLong_AsLong(number);
}

static Counts *
counts_of(GrpcServer *server, H2Stream *st)
{
    H2Method *known = st->method != NULL ? st->method : h2_find(server->srv, st->head, st->path_len);
    return known != NULL ? &((GrpcMethod *)known->app)->counts : &server->others;
}

static int
code_index(int code)
{
    return code >= 0 && code < CODES ? code : GRPC_UNKNOWN;
}

/* A call has ended with this code: counts it, and returns how long it took (ns). */
static int64_t
count_stream(GrpcServer *server, H2Stream *st, int code)
{
    Counts *n = counts_of(server, st);
    int64_t ns = nanotime() - st->started;
    uint64_t us = (uint64_t)ns / 1000;
    int bucket = us <= 1 ? 0 : 63 - __builtin_clzll(us);
    n->codes[code_index(code)]++;
    n->buckets[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
    n->ns += ns;
    return ns;
}

/* Tells the access log, which may park.  In the call's own goroutine that delays nobody else; where it is another one (the dispatching
 * goroutine, with call NULL; who drops the last reference; who ends a call by its callback), the log gets a goroutine. */
static void
tell_log(GrpcServer *server, H2Stream *st, GrpcCall *call, int code, int64_t ns)
{
    if (GMP_LIKELY(server->access_log == NULL))
        return;
    PyObject *type, *value, *tb, *current = NULL;
    PyErr_Fetch(&type, &value, &tb);
    if (call != NULL && PyContextVar_Get(current_var, NULL, &current) < 0)
        PyErr_Clear();
    bool own = current != NULL && current == (PyObject *)call;
    Py_XDECREF(current);
    PyObject *log = Py_NewRef(server->access_log), *r = NULL;
    PyObject *path = PyUnicode_DecodeUTF8(st->head, (Py_ssize_t)st->path_len, "replace");
    PyObject *args = path != NULL ? Py_BuildValue("Osid", path, st->conn->peer, code, (double)ns / 1e9) : NULL;
    if (args != NULL && own) {
        r = PyObject_CallObject(log, args);
    }
    else if (args != NULL) {
        PyObject *all[5] = {log};
        for (Py_ssize_t i = 0; i < 4; i++)
            all[i + 1] = PyTuple_GET_ITEM(args, i);
        r = py_go(NULL, all, 5, NULL);
    }
    if (r == NULL)
        PyErr_WriteUnraisable(log);
    Py_XDECREF(r);
    Py_XDECREF(args);
    Py_XDECREF(path);
    Py_DECREF(log);
    PyErr_Restore(type, value, tb);
}

/* The code of a call that did not end by a status of its handler. */
static int
early_code(H2Stream *st)
{
    static const uint8_t codes[] = {
        [END_NOT] = GRPC_UNKNOWN,      [END_RESET] = GRPC_CANCELLED, [END_LOST] = GRPC_CANCELLED,
        [END_CANCEL] = GRPC_CANCELLED, [END_STATUS] = GRPC_UNKNOWN,  [END_DEADLINE] = GRPC_DEADLINE_EXCEEDED,
    };
    H2End ended = h2_ended(st);
    return ended == END_TOO_LARGE ? (int)atomic_load_relaxed(&st->cancel) : codes[ended];
}

static void
account_early(GrpcCall *call)
{
    if (call->counted)
        return;
    call->counted = true;
    int code = early_code(call->st);
    tell_log(call->server, call->st, call, code, count_stream(call->server, call->st, code));
}

static void
leave(GrpcCall *call)
{
    if (call->entered) {
        call->entered = false;
        call->server->active--;
    }
}

/* Sends the status, and the last message with it.  False: the call had ended before.  -1: an exception. */
static int
finish(GrpcCall *call, PyObject *data, int status, PyObject *details, PyObject *trailing)
{
    if (call->finished || !h2_finish(call->st))
        return 0;
    call->finished = true;
    leave(call);
    bool count = !call->counted;
    call->counted = true;
    int64_t ns = count ? count_stream(call->server, call->st, status) : 0; /* before the client knows */
    Sending s = {.data = data, .status = status, .details = details, .trailing = trailing};
    int r = 1;
    PyObject *type = NULL, *value = NULL, *tb = NULL;
    if (send_op(call, &s) < 0) { /* the metadata or the details are no good: the client gets a status all the same */
        r = -1;
        PyErr_Fetch(&type, &value, &tb);
        s = (Sending){.status = GRPC_INTERNAL, .details = PyUnicode_FromString("Failed to send the status!")};
        if (send_op(call, &s) < 0)
            PyErr_Clear();
        Py_XDECREF(s.details);
        if (count) {
            Counts *n = counts_of(call->server, call->st);
            n->codes[code_index(status)]--;
            n->codes[GRPC_INTERNAL]++;
        }
    }
    if (count)
        tell_log(call->server, call->st, call, s.status, ns);
    if (r < 0)
        PyErr_Restore(type, value, tb);
    return r;
}

/* _finish(message or None, code or None, details or None): code, details: instead of those that were set, if any.  What was set
 * (trailing metadata) goes along. */
static PyObject *
call_finish(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    GrpcCall *call = (GrpcCall *)self;
    if (stream_of(self) == NULL)
        return NULL;
    if (nargs != 3 || (args[0] != Py_None && !PyBytes_Check(args[0]))) {
        PyErr_SetString(PyExc_TypeError, "_finish(bytes or None, code, details)");
        return NULL;
    }
    PyObject *code = call->code != NULL && call->code != Py_None ? call->code : args[1];
    PyObject *details = call->details != NULL && call->details != Py_None ? call->details : args[2];
    int r = finish(call, args[0] == Py_None ? NULL : args[0], code_number(code), details, call->trailing);
    return r < 0 ? NULL : PyBool_FromLong(r);
}

/* _reject(code, details): a status and nothing else. */
static PyObject *
call_reject(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (stream_of(self) == NULL)
        return NULL;
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "_reject(code, details)");
        return NULL;
    }
    int r = finish((GrpcCall *)self, NULL, code_number(args[0]), args[1], NULL);
    return r < 0 ? NULL : PyBool_FromLong(r);
}

/* _enter(): False: maximum_concurrent_rpcs are running. */
static bool
enter(GrpcCall *call)
{
    GrpcServer *server = call->server;
    if (server->maximum >= 0 && server->active >= server->maximum)
        return false;
    server->active++;
    call->entered = true;
    return true;
}

static PyObject *
call_enter(PyObject *self, PyObject *unused)
{
    return stream_of(self) == NULL ? NULL : PyBool_FromLong(enter((GrpcCall *)self));
}

static PyObject *
call_leave(PyObject *self, PyObject *unused)
{
    leave((GrpcCall *)self);
    Py_RETURN_NONE;
}

static PyObject *
call_is_active(PyObject *self, PyObject *unused)
{
    H2Stream *st = stream_of(self);
    return st == NULL ? NULL : PyBool_FromLong(h2_ended(st) == END_NOT);
}

static PyObject *
call_is_cancelled(PyObject *self, void *closure)
{
    H2Stream *st = stream_of(self);
    if (st == NULL)
        return NULL;
    H2End ended = h2_ended(st);
    return PyBool_FromLong(ended != END_NOT && ended != END_STATUS);
}

static PyObject *
call_time_remaining(PyObject *self, PyObject *unused)
{
    H2Stream *st = stream_of(self);
    if (st == NULL)
        return NULL;
    if (st->deadline == 0)
        return PyFloat_FromDouble(9.223372036854775807e18);
    int64_t left = st->deadline - nanotime();
    return PyFloat_FromDouble(left > 0 ? (double)left / 1e9 : 0);
}

static PyObject *
call_cancel(PyObject *self, PyObject *unused)
{
    H2Stream *st = stream_of(self);
    if (st == NULL)
        return NULL;
    h2_cancel(st, GRPC_CANCELLED);
    Py_RETURN_NONE;
}

static PyObject *
metadatum_of(const H2Pair *p)
{
    PyObject *key = PyUnicode_DecodeLatin1(p->name, (Py_ssize_t)p->nlen, NULL), *value = NULL;
    if (p->nlen > 4 && memcmp(p->name + p->nlen - 4, "-bin", 4) == 0) {
        PyObject *raw = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)p->vlen);
        Py_ssize_t n = raw != NULL ? h2_base64_decode(PyBytes_AS_STRING(raw), p->value, p->vlen) : 0;
        if (raw != NULL && n < 0)
            Py_SETREF(raw, PyBytes_FromStringAndSize(p->value, (Py_ssize_t)p->vlen));
        else if (raw != NULL)
            _PyBytes_Resize(&raw, n);
        value = raw;
    }
    else {
        value = PyUnicode_DecodeUTF8(p->value, (Py_ssize_t)p->vlen, NULL);
        if (value == NULL) {
            PyErr_Clear();
            value = PyUnicode_DecodeLatin1(p->value, (Py_ssize_t)p->vlen, NULL);
        }
    }
    PyObject *r = key != NULL && value != NULL ? PyObject_CallFunctionObjArgs(metadatum, key, value, NULL) : NULL;
    Py_XDECREF(key);
    Py_XDECREF(value);
    return r;
}

static PyObject *
call_invocation_metadata(PyObject *self, PyObject *unused)
{
    GrpcCall *call = (GrpcCall *)self;
    H2Stream *st = stream_of(self);
    if (st == NULL)
        return NULL;
    if (call->metadata == NULL) {
        PyObject *tuple = PyTuple_New((Py_ssize_t)st->npairs);
        const char *at = st->head + st->path_len;
        for (uint32_t i = 0; tuple != NULL && i < st->npairs; i++) {
            H2Pair p;
            at = h2_pair(at, &p);
            PyObject *item = metadatum_of(&p);
            if (item == NULL)
                Py_CLEAR(tuple);
            else
                PyTuple_SET_ITEM(tuple, (Py_ssize_t)i, item);
        }
        call->metadata = tuple;
    }
    return Py_XNewRef(call->metadata);
}

static PyObject *
call_peer(PyObject *self, PyObject *unused)
{
    H2Stream *st = stream_of(self);
    return st == NULL ? NULL : PyUnicode_FromString(st->conn->peer);
}

/* _tls_peer(): what TLS tells of the client; empty without it. */
static PyObject *
call_tls_peer(PyObject *self, PyObject *unused)
{
    H2Stream *st = stream_of(self);
    return st == NULL ? NULL : py_tls_peer(st->conn);
}

static PyObject *
call_path(PyObject *self, void *closure)
{
    H2Stream *st = stream_of(self);
    return st == NULL ? NULL : PyUnicode_DecodeUTF8(st->head, (Py_ssize_t)st->path_len, "replace");
}

static PyObject *
set_field(PyObject **field, PyObject *value)
{
    Py_XSETREF(*field, Py_NewRef(value));
    Py_RETURN_NONE;
}

static PyObject *
get_field(PyObject *value)
{
    return Py_NewRef(value != NULL ? value : Py_None);
}

static PyObject *
call_set_code(PyObject *self, PyObject *code)
{
    return set_field(&((GrpcCall *)self)->code, code);
}

static PyObject *
call_code(PyObject *self, PyObject *unused)
{
    return get_field(((GrpcCall *)self)->code);
}

static PyObject *
call_set_details(PyObject *self, PyObject *details)
{
    PyObject *bytes = PyBytes_Check(details) ? Py_NewRef(details) : NULL;
    if (PyUnicode_Check(details))
        bytes = PyUnicode_AsUTF8String(details);
    else if (bytes == NULL)
        PyErr_Format(PyExc_TypeError, "set_details() takes a str, not %.200s", Py_TYPE(details)->tp_name);
    if (bytes == NULL)
        return NULL;
    Py_XSETREF(((GrpcCall *)self)->details, bytes);
    Py_RETURN_NONE;
}

static PyObject *
call_details(PyObject *self, PyObject *unused)
{
    return get_field(((GrpcCall *)self)->details);
}

static PyObject *
call_set_trailing(PyObject *self, PyObject *metadata)
{
    return set_field(&((GrpcCall *)self)->trailing, metadata);
}

static PyObject *
call_trailing(PyObject *self, PyObject *unused)
{
    return get_field(((GrpcCall *)self)->trailing);
}

static PyObject *
call_set_compression(PyObject *self, PyObject *compression)
{
    int e = 0;
    if (compression != Py_None) {
        PyObject *number = PyNumber_Index(compression);
        if (number == NULL)
            return NULL;
        e = (int)PyLong_AsLong(number);
        Py_DECREF(number);
    }
    ((GrpcCall *)self)->compression = e >= ENC_IDENTITY && e <= ENC_GZIP ? e : ENC_IDENTITY;
    Py_RETURN_NONE;
}

static PyObject *
call_disable_next(PyObject *self, PyObject *unused)
{
    ((GrpcCall *)self)->plain_next = true;
    Py_RETURN_NONE;
}

static PyObject *
call_add_callback(PyObject *self, PyObject *callback)
{
    GrpcCall *call = (GrpcCall *)self;
    H2Stream *st = stream_of(self);
    if (st == NULL)
        return NULL;
    if (call->callbacks_done || (call->callbacks == NULL && !h2_notify_end(st)))
        Py_RETURN_FALSE;
    if (call->callbacks == NULL && (call->callbacks = PyList_New(0)) == NULL)
        return NULL;
    if (PyList_Append(call->callbacks, callback) < 0)
        return NULL;
    Py_RETURN_TRUE;
}

/* _take_callbacks(): the list, once; from now on add_callback refuses. */
static PyObject *
call_take_callbacks(PyObject *self, PyObject *unused)
{
    GrpcCall *call = (GrpcCall *)self;
    PyObject *list = call->callbacks;
    call->callbacks = NULL;
    call->callbacks_done = true;
    return list != NULL ? list : PyTuple_New(0);
}

static PyObject *
call_get_aborted(PyObject *self, void *closure)
{
    return PyBool_FromLong(((GrpcCall *)self)->aborted);
}

static int
call_set_aborted(PyObject *self, PyObject *value, void *closure)
{
    ((GrpcCall *)self)->aborted = value == Py_True;
    return 0;
}

static PyMethodDef call_methods[] = {
    {"is_active", call_is_active, METH_NOARGS, PyDoc_STR("Whether the call is still under way.")},
    {"time_remaining", call_time_remaining, METH_NOARGS, PyDoc_STR("Seconds until the deadline.")},
    {"cancel", call_cancel, METH_NOARGS, PyDoc_STR("Ends the call with CANCELLED.")},
    {"invocation_metadata", call_invocation_metadata, METH_NOARGS, PyDoc_STR("What the client sent along.")},
    {"peer", call_peer, METH_NOARGS, PyDoc_STR("The client's address.")},
    {"set_code", call_set_code, METH_O, PyDoc_STR("The status the call will end with.")},
    {"code", call_code, METH_NOARGS, PyDoc_STR("What set_code was given.")},
    {"set_details", call_set_details, METH_O, PyDoc_STR("The status message the call will end with.")},
    {"details", call_details, METH_NOARGS, PyDoc_STR("What set_details was given, as bytes.")},
    {"set_trailing_metadata", call_set_trailing, METH_O, PyDoc_STR("What the client gets with the status.")},
    {"trailing_metadata", call_trailing, METH_NOARGS, PyDoc_STR("What set_trailing_metadata was given.")},
    {"set_compression", call_set_compression, METH_O, PyDoc_STR("How responses are compressed.")},
    {"disable_next_message_compression", call_disable_next, METH_NOARGS, PyDoc_STR("But not the next one.")},
    {"add_callback", call_add_callback, METH_O, PyDoc_STR("Called when the call has ended; False: it has.")},
    {"_tls_peer", call_tls_peer, METH_NOARGS, NULL},
    {"_recv", call_recv, METH_NOARGS, NULL},
    {"_send", (PyCFunction)(void (*)(void))call_send, METH_FASTCALL, NULL},
    {"_start", call_start, METH_O, NULL},
    {"_finish", (PyCFunction)(void (*)(void))call_finish, METH_FASTCALL, NULL},
    {"_reject", (PyCFunction)(void (*)(void))call_reject, METH_FASTCALL, NULL},
    {"_enter", call_enter, METH_NOARGS, NULL},
    {"_leave", call_leave, METH_NOARGS, NULL},
    {"_take_callbacks", call_take_callbacks, METH_NOARGS, NULL},
    {0},
};

static PyGetSetDef call_getset[] = {
    {"_path", call_path, NULL, NULL, NULL},
    {"_cancelled", call_is_cancelled, NULL, NULL, NULL},
    {"_aborted", call_get_aborted, call_set_aborted, NULL, NULL},
    {0},
};

static PyTypeObject GrpcCall_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "gmp._core.GrpcCall",
    .tp_doc = PyDoc_STR("A call, as its handler sees it: the C half of gmp.grpc's ServicerContext."),
    .tp_basicsize = sizeof(GrpcCall),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = call_dealloc,
    .tp_traverse = call_traverse,
    .tp_clear = call_clear,
    .tp_methods = call_methods,
    .tp_getset = call_getset,
};

/* ---- running calls ---- */

/* What Python is to look after: failed(context, stage, exception). */
static PyObject *
fail(GrpcCall *call, const char *stage)
{
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    if (type != NULL) {
        PyErr_NormalizeException(&type, &value, &tb);
        if (tb != NULL)
            PyException_SetTraceback(value, tb);
    }
    PyObject *r = PyObject_CallFunction(call->server->failed, "OsO", call, stage, value != NULL ? value : Py_None);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(tb);
    return r;
}

static PyObject *
run_unary(GrpcCall *call, GrpcMethod *method)
{
    H2Msg *m = NULL;
    int code = recv_msg(call->st, &m);
    if (code == GMP_ECLOSED)
        Py_RETURN_NONE;
    if (code != GMP_OK)
        return NULL;
    if (m == NULL)
        return fail(call, "no request");
    PyObject *request = msg_bytes(call->server, call->st, m);
    if (request == NULL)
        return fail(call, "message");
    if (method->deserializer != NULL)
        Py_SETREF(request, PyObject_CallOneArg(method->deserializer, request));
    if (request == NULL || request == Py_None) {
        Py_XDECREF(request);
        return fail(call, "request");
    }
    PyObject *args[3] = {NULL, request, (PyObject *)call};
    PyObject *response = PyObject_Vectorcall(method->behavior, args + 1, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    Py_DECREF(request);
    if (response == NULL)
        return fail(call, "handler");
    if (method->serializer != NULL)
        Py_SETREF(response, PyObject_CallOneArg(method->serializer, response));
    if (response == NULL || !PyBytes_Check(response)) {
        Py_XDECREF(response);
        return fail(call, "response");
    }
    if (call->server->max_send >= 0 && PyBytes_GET_SIZE(response) > call->server->max_send) {
        PyErr_Format(PyExc_ValueError, "SERVER: Sent message larger than max (%zd vs. %lld)",
                     PyBytes_GET_SIZE(response), (long long)call->server->max_send);
        Py_DECREF(response);
        return fail(call, "too large");
    }
    int r = finish(call, response, code_number(call->code), call->details, call->trailing);
    Py_DECREF(response);
    if (r < 0)
        return fail(call, "status");
    Py_RETURN_NONE;
}

static PyObject *
run_call(PyObject *module, PyObject *context)
{
    GrpcCall *call = (GrpcCall *)context;
    GrpcServer *server = call->server;
    GrpcMethod *method = call->st->method != NULL ? call->st->method->app : NULL;
    h2_flush_overdue(server->srv); /* what others have posted must not wait for us */
    PyObject *r = PyContextVar_Set(current_var, context);
    if (r == NULL)
        return NULL;
    Py_DECREF(r); /* a token */
    if (method == NULL || !method->fast)
        return PyObject_CallFunctionObjArgs(
            server->serve, context, method != NULL && method->handler != NULL ? method->handler : Py_None, NULL);
    if (!enter(call))
        r = fail(call, "busy");
    else
        r = run_unary(call, method);
    leave(call);
    if (GMP_UNLIKELY(!call->finished))
        account_early(call);
    if (GMP_UNLIKELY(call->callbacks != NULL && !call->callbacks_done) && r != NULL)
        Py_SETREF(r, fail(call, "callbacks"));
    call->callbacks_done = true;
    return r;
}

static PyObject *
run_callbacks(PyObject *module, PyObject *context)
{
    GrpcServer *server = ((GrpcCall *)context)->server;
    PyObject *r = fail((GrpcCall *)context, "callbacks");
    if (--server->ending == 0)
        while (waitq_wake(&server->ended))
            ;
    return r;
}

/* ---- GrpcServer ---- */

/* The server, or NULL with an exception. */
static H2Server *
engine_of(PyObject *self)
{
    GrpcServer *server = (GrpcServer *)self;
    if (server->generation == generation)
        return server->srv;
    PyErr_SetString(PyExc_RuntimeError, "the server is the parent process's: make one in the child");
    return NULL;
}

static int
start_call(GrpcServer *server, H2Stream *st)
{
    if (st->method != NULL && h2_ended(st) != END_NOT) { /* nobody has seen it yet, and nobody needs to */
        int code = early_code(st);
        tell_log(server, st, NULL, code, count_stream(server, st, code));
        h2_stream_unref(st);
        return 0;
    }
    PyObject *context = call_new(server, st);
    if (context == NULL) {
        h2_cancel(st, GRPC_RESOURCE_EXHAUSTED);
        h2_stream_unref(st);
        return -1;
    }
    PyObject *args[2] = {run_call_fn, context};
    PyObject *h = py_go(NULL, args, 2, NULL);
    if (h == NULL)
        h2_cancel(st, GRPC_RESOURCE_EXHAUSTED);
    Py_DECREF(context);
    Py_XDECREF(h);
    return h == NULL ? -1 : 0;
}

static int
end_call(H2Stream *st)
{
    PyObject *context = Py_XNewRef((PyObject *)st->app), *h = Py_None;
    if (context != NULL) {
        GrpcServer *server = ((GrpcCall *)context)->server;
        PyObject *args[2] = {run_callbacks_fn, context};
        server->ending++;
        h = py_go(NULL, args, 2, NULL);
        if (h == NULL)
            server->ending--;
        Py_DECREF(context);
        Py_XDECREF(h);
    }
    h2_stream_unref(st);
    return h == NULL ? -1 : 0;
}

/* Warnings and the like are Python's; what it calls for them may park. */
static int
give_notice(GrpcServer *server)
{
    PyObject *h = Py_None;
    if (server->notice != NULL)
        h = py_go(NULL, &server->notice, 1, NULL);
    if (h != Py_None)
        Py_XDECREF(h);
    return h == NULL ? -1 : 0;
}

/* dispatch(): starts a goroutine for each call, until the server has ended. */
static PyObject *
server_dispatch(PyObject *self, PyObject *unused)
{
    GrpcServer *server = (GrpcServer *)self;
    PyWait w = {.timeout = -1};
    if (engine_of(self) == NULL)
        return NULL;
    if (py_wait_begin(&w) < 0)
        return NULL;
    atomic_xadd(&py_served, 1u);
    for (;;) {
        H2Stream *st = NULL;
        int why = 0, code = h2_take(server->srv, &st, &why);
        if (code != GMP_OK) {
            int again = code == GMP_ECLOSED ? 0 : py_wait_again(&w, code);
            if (again > 0)
                continue;
            atomic_xadd(&py_served, (uint32_t)-1);
            while (code == GMP_ECLOSED && server->ending != 0)
                (void)waitq_park(&server->ended, NULL, false, WAIT_WAITGROUP, -1);
            if (code == GMP_ECLOSED)
                Py_RETURN_NONE;
            if (again == 0)
                py_raise_code(code, "dispatch()", &w);
            return NULL;
        }
        if ((why == READY_NOTICE ? give_notice(server) : why == READY_CALL ? start_call(server, st) : end_call(st)) < 0)
            PyErr_WriteUnraisable(self); /* no memory; the others go on */
    }
}

static PyObject *
raise_errno(int err)
{
    errno = err;
    return PyErr_SetFromErrno(PyExc_OSError);
}

/* listen(fd, GrpcTls or None): the listening socket becomes the server's. */
static PyObject *
server_listen(PyObject *self, PyObject *args)
{
    int fd;
    PyObject *credentials = Py_None;
    H2Tls *tls = NULL;
    if (!PyArg_ParseTuple(args, "i|O", &fd, &credentials))
        return NULL;
    if (fd < 0)
        return raise_errno(EBADF);
    H2Server *srv = engine_of(self);
    if (srv == NULL || (credentials != Py_None && (tls = py_tls_get(credentials)) == NULL))
        return NULL;
    if (tls != NULL)
        h2_tls_ref(tls);
    int err = h2_listen(srv, fd, tls != NULL ? &h2_tls : &h2_plain, tls);
    if (err == 0)
        Py_RETURN_NONE;
    if (tls != NULL)
        h2_tls_unref(tls);
    return raise_errno(err);
}

static PyObject *
server_start(PyObject *self, PyObject *unused)
{
    H2Server *srv = engine_of(self);
    if (srv == NULL)
        return NULL;
    int err = h2_start(srv);
    if (err != 0)
        return raise_errno(err);
    Py_RETURN_NONE;
}

static PyObject *
server_drain(PyObject *self, PyObject *unused)
{
    H2Server *srv = engine_of(self);
    if (srv == NULL)
        return NULL;
    h2_drain(srv);
    Py_RETURN_NONE;
}

static PyObject *
server_kill(PyObject *self, PyObject *unused)
{
    H2Server *srv = engine_of(self);
    if (srv == NULL)
        return NULL;
    h2_kill(srv);
    Py_RETURN_NONE;
}

/* learn(path, handler or None, behavior or None, deserializer, serializer, unary): there is such a method, and its handler, if given, is
 * always this one.  behavior: of a unary-unary method that run_unary may run. */
static PyObject *
server_learn(PyObject *self, PyObject *args)
{
    GrpcServer *server = (GrpcServer *)self;
    const char *path;
    Py_ssize_t n;
    PyObject *handler, *behavior, *deserializer, *serializer;
    int unary;
    if (!PyArg_ParseTuple(args, "s#OOOOp", &path, &n, &handler, &behavior, &deserializer, &serializer, &unary))
        return NULL;
    if (engine_of(self) == NULL)
        return NULL;
    if (h2_find(server->srv, path, (uint32_t)n) != NULL)
        Py_RETURN_NONE;
    GrpcMethod *m = PyMem_Calloc(1, sizeof *m);
    if (m == NULL)
        return PyErr_NoMemory();
    m->handler = handler != Py_None ? Py_NewRef(handler) : NULL;
    m->fast = behavior != Py_None;
    m->behavior = behavior != Py_None ? Py_NewRef(behavior) : NULL;
    m->deserializer = deserializer != Py_None ? Py_NewRef(deserializer) : NULL;
    m->serializer = serializer != Py_None ? Py_NewRef(serializer) : NULL;
    m->next = server->methods;
    server->methods = m;
    m->known = h2_learn(server->srv, path, (uint32_t)n, unary != 0, m);
    return m->known == NULL ? PyErr_NoMemory() : Py_NewRef(Py_None);
}

/* (codes, buckets, seconds) */
static PyObject *
counts_tuple(const Counts *n)
{
    PyObject *codes = PyTuple_New(CODES), *buckets = PyTuple_New(BUCKETS);
    for (int i = 0; i < CODES && codes != NULL; i++)
        PyTuple_SET_ITEM(codes, i, PyLong_FromUnsignedLongLong(n->codes[i]));
    for (int i = 0; i < BUCKETS && buckets != NULL; i++)
        PyTuple_SET_ITEM(buckets, i, PyLong_FromUnsignedLongLong(n->buckets[i]));
    if (codes == NULL || buckets == NULL) {
        Py_XDECREF(codes);
        Py_XDECREF(buckets);
        return NULL;
    }
    return Py_BuildValue("(NNd)", codes, buckets, (double)n->ns / 1e9);
}

/* {path: counts_tuple}; "" for calls to no known method. */
static PyObject *
server_methods_counts(PyObject *self, PyObject *unused)
{
    GrpcServer *server = (GrpcServer *)self;
    PyObject *dict = engine_of(self) != NULL ? PyDict_New() : NULL;
    if (dict == NULL)
        return NULL;
    for (GrpcMethod *m = server->methods;; m = m->next) {
        PyObject *counts = counts_tuple(m != NULL ? &m->counts : &server->others);
        PyObject *path = m != NULL && m->known != NULL
                             ? PyUnicode_DecodeUTF8(m->known->path, (Py_ssize_t)m->known->len, "replace")
                             : PyUnicode_FromString("");
        int r = counts != NULL && path != NULL ? PyDict_SetItem(dict, path, counts) : -1;
        Py_XDECREF(counts);
        Py_XDECREF(path);
        if (r < 0) {
            Py_DECREF(dict);
            return NULL;
        }
        if (m == NULL)
            return dict;
    }
}

/* What server_connections copies of a connection. */
typedef struct ConnFacts {
    char local[sizeof((H2Conn *)0)->peer], remote[sizeof((H2Conn *)0)->peer];
    const char *version, *cipher; /* NULL: no TLS */
    int64_t opened, read;
    uint32_t streams;
    H2Counts counts;
} ConnFacts;

/* Under H2Server.lock: the descriptor is open. */
static void
look_at(H2Conn *c, ConnFacts *f)
{
    struct sockaddr_storage local = {0};
    socklen_t len = sizeof local;
    if (getsockname(c->fd, (struct sockaddr *)&local, &len) != 0)
        len = 0;
    h2_peer_name(f->local, sizeof f->local, &local, len);
    memcpy(f->remote, c->peer, sizeof f->remote);
    if (!h2_tls_security(c, &f->version, &f->cipher))
        f->version = f->cipher = NULL;
    f->opened = c->opened;
    f->read = atomic_load_relaxed(&c->last_read);
    f->streams = atomic_load_relaxed(&c->nstreams);
    const H2Counts *n = &c->counts;
    f->counts = (H2Counts){
        .streams_started = atomic_load_relaxed(&n->streams_started),
        .streams_succeeded = atomic_load_relaxed(&n->streams_succeeded),
        .streams_failed = atomic_load_relaxed(&n->streams_failed),
        .messages_sent = atomic_load_relaxed(&n->messages_sent),
        .messages_received = atomic_load_relaxed(&n->messages_received),
        .bytes_sent = atomic_load_relaxed(&n->bytes_sent),
        .bytes_received = atomic_load_relaxed(&n->bytes_received),
        .keep_alives_sent = atomic_load_relaxed(&n->keep_alives_sent),
        .last_stream = atomic_load_relaxed(&n->last_stream),
    };
}

static PyObject *
facts_dict(const ConnFacts *f, int64_t now)
{
    const H2Counts *n = &f->counts;
    PyObject *security = Py_NewRef(Py_None), *last = Py_NewRef(Py_None);
    if (f->version != NULL)
        Py_SETREF(security, Py_BuildValue("{ssss}", "version", f->version, "cipher", f->cipher));
    if (n->last_stream != 0)
        Py_SETREF(last, PyFloat_FromDouble((double)(now - n->last_stream) / 1e9));
    if (security == NULL || last == NULL) {
        Py_XDECREF(security);
        Py_XDECREF(last);
        return NULL;
    }
    return Py_BuildValue(
        "{sssssNsdsdsIsNsKsKsKsKsKsKsKsK}", "local", f->local, "remote", f->remote, "security", security, "age",
        (double)(now - f->opened) / 1e9, "idle", (double)(now - f->read) / 1e9, "streams", f->streams, "last_call",
        last, "streams_started", (unsigned long long)n->streams_started, "streams_succeeded",
        (unsigned long long)n->streams_succeeded, "streams_failed", (unsigned long long)n->streams_failed,
        "messages_sent", (unsigned long long)n->messages_sent, "messages_received",
        (unsigned long long)n->messages_received, "bytes_sent", (unsigned long long)n->bytes_sent, "bytes_received",
        (unsigned long long)n->bytes_received, "keep_alives_sent", (unsigned long long)n->keep_alives_sent);
}

/* A dictionary of each open connection. */
static PyObject *
server_connections(PyObject *self, PyObject *unused)
{
    H2Server *srv = engine_of(self);
    PyObject *list = srv != NULL ? PyList_New(0) : NULL;
    if (list == NULL)
        return NULL;
    mutex_lock(&srv->lock);
    uint32_t n = 0;
    ConnFacts *facts = malloc((srv->nconns + 1) * sizeof *facts);
    for (H2Conn *c = srv->conns; facts != NULL && c != NULL; c = c->next)
        look_at(c, &facts[n++]);
    mutex_unlock(&srv->lock);
    int64_t now = nanotime(); /* later than all that was copied */
    if (facts == NULL) {
        Py_DECREF(list);
        return PyErr_NoMemory();
    }
    for (uint32_t i = 0; i < n && list != NULL; i++) {
        PyObject *item = facts_dict(&facts[i], now);
        if (item == NULL || PyList_Append(list, item) < 0)
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    free(facts);
    return list;
}

/* access_log(fn or None) */
static PyObject *
server_access_log(PyObject *self, PyObject *fn)
{
    Py_XSETREF(((GrpcServer *)self)->access_log, fn != Py_None ? Py_NewRef(fn) : NULL);
    Py_RETURN_NONE;
}

/* on_notice(fn or None): called in a goroutine when warnings() may have one, or credentials wait for certificates. */
static PyObject *
server_on_notice(PyObject *self, PyObject *fn)
{
    Py_XSETREF(((GrpcServer *)self)->notice, fn != Py_None ? Py_NewRef(fn) : NULL);
    Py_RETURN_NONE;
}

/* warning(): the next line for the log, or None. */
static PyObject *
server_warning(PyObject *self, PyObject *unused)
{
    H2Server *srv = engine_of(self);
    char line[H2_NEWS_SIZE];
    if (srv == NULL)
        return NULL;
    if (!h2_news(srv, line))
        Py_RETURN_NONE;
    return PyUnicode_DecodeUTF8(line, (Py_ssize_t)strlen(line), "replace");
}

static PyObject *
server_stats(PyObject *self, PyObject *unused)
{
    GrpcServer *server = (GrpcServer *)self;
    H2Server *srv = engine_of(self);
    if (srv == NULL)
        return NULL;
    unsigned long streams = 0, connections = 0;
    mutex_lock(&srv->lock);
    for (H2Conn *c = srv->conns; c != NULL; c = c->next) {
        streams += atomic_load_relaxed(&c->nstreams);
        connections++;
    }
    mutex_unlock(&srv->lock);
    PyObject *closed = PyDict_New();
    for (int i = 0; closed != NULL && i < H2_WHYS; i++) {
        unsigned long long n = atomic_load_relaxed(&srv->whys[i]);
        PyObject *number = n != 0 ? PyLong_FromUnsignedLongLong(n) : NULL;
        if (n != 0 && (number == NULL || PyDict_SetItemString(closed, h2_why_names[i], number) < 0))
            Py_CLEAR(closed);
        Py_XDECREF(number);
    }
    if (closed == NULL)
        return NULL;
    return Py_BuildValue("{sksksnsKsKsKsN}", "connections", connections, "streams", streams, "running", server->active,
                         "accepted", (unsigned long long)atomic_load_relaxed(&srv->accepted), "calls",
                         (unsigned long long)atomic_load_relaxed(&srv->calls), "resets",
                         (unsigned long long)atomic_load_relaxed(&srv->resets), "abuse", closed);
}

static PyObject *
server_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"context_type",
                            "serve",
                            "failed",
                            "maximum",
                            "compression",
                            "max_recv",
                            "max_send",
                            "max_streams",
                            "stream_window",
                            "max_headers",
                            "keepalive_time",
                            "keepalive_timeout",
                            "min_ping_interval",
                            "max_ping_strikes",
                            "permit_without_calls",
                            "max_idle",
                            "max_age",
                            "max_age_grace",
                            "handshake_timeout",
                            "max_resets",
                            "max_frames",
                            "max_buffered",
                            "header_timeout",
                            "write_timeout",
                            NULL};
    PyObject *context_type, *serve, *failed;
    Py_ssize_t maximum;
    int compression, strikes, without_calls;
    long long max_recv, max_send, keepalive_time, keepalive_timeout, ping_interval, max_idle, max_age, age_grace,
        handshake, header_timeout, write_timeout;
    unsigned long long max_buffered;
    unsigned int max_streams, window, max_headers, max_resets, max_frames;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!OOniLLIIILLLipLLLLIIKLL", names, &PyType_Type, &context_type,
                                     &serve, &failed, &maximum, &compression, &max_recv, &max_send, &max_streams,
                                     &window, &max_headers, &keepalive_time, &keepalive_timeout, &ping_interval,
                                     &strikes, &without_calls, &max_idle, &max_age, &age_grace, &handshake, &max_resets,
                                     &max_frames, &max_buffered, &header_timeout, &write_timeout))
        return NULL;
    if (!PyType_IsSubtype((PyTypeObject *)context_type, &GrpcCall_Type)) {
        PyErr_SetString(PyExc_TypeError, "context_type must be a subclass of GrpcCall");
        return NULL;
    }
    H2Options options = {
        .max_recv = max_recv,
        .max_streams = max_streams,
        .stream_window = window,
        .conn_window = 16 * 1024 * 1024,
        .max_headers = max_headers,
        .max_frame = 16384,
        .keepalive_time = keepalive_time,
        .keepalive_timeout = keepalive_timeout,
        .min_ping_interval = ping_interval,
        .max_ping_strikes = strikes,
        .keepalive_without_calls = without_calls != 0,
        .max_idle = max_idle,
        .max_age = max_age,
        .max_age_grace = age_grace,
        .handshake_timeout = handshake,
        .max_resets = max_resets,
        .max_frames = max_frames,
        .max_buffered = max_buffered,
        .header_timeout = header_timeout,
        .write_timeout = write_timeout,
    };
    int code = h2_native_start();
    if (code < 0) {
        py_raise_code(code, "start the native goroutines", NULL);
        return NULL;
    }
    atomic_store(&SCHED->before_idle, h2_flush_all);
    atomic_store(&SCHED->overdue, h2_flush_all_overdue);
    GrpcServer *server = (GrpcServer *)type->tp_alloc(type, 0);
    if (server == NULL)
        return NULL;
    server->generation = generation;
    server->srv = h2_server_new(&options);
    if (server->srv == NULL) {
        Py_DECREF(server);
        return PyErr_NoMemory();
    }
    server->context_type = (PyTypeObject *)Py_NewRef(context_type);
    server->serve = Py_NewRef(serve);
    server->failed = Py_NewRef(failed);
    server->maximum = maximum;
    server->compression = compression;
    server->max_send = max_send;
    return (PyObject *)server;
}

static int
server_traverse(PyObject *self, visitproc visit, void *arg)
{
    GrpcServer *server = (GrpcServer *)self;
    Py_VISIT(server->context_type);
    Py_VISIT(server->serve);
    Py_VISIT(server->failed);
    Py_VISIT(server->access_log);
    Py_VISIT(server->notice);
    for (GrpcMethod *m = server->methods; m != NULL; m = m->next) {
        Py_VISIT(m->handler);
        Py_VISIT(m->behavior);
        Py_VISIT(m->deserializer);
        Py_VISIT(m->serializer);
    }
    return 0;
}

static void
server_dealloc(PyObject *self)
{
    GrpcServer *server = (GrpcServer *)self;
    PyObject_GC_UnTrack(self);
    if (server->srv != NULL && server->generation == generation) {
        h2_kill(server->srv);
        h2_server_free(server->srv);
    }
    while (server->methods != NULL) {
        GrpcMethod *m = server->methods;
        server->methods = m->next;
        Py_XDECREF(m->handler);
        Py_XDECREF(m->behavior);
        Py_XDECREF(m->deserializer);
        Py_XDECREF(m->serializer);
        PyMem_Free(m);
    }
    Py_XDECREF(server->context_type);
    Py_XDECREF(server->serve);
    Py_XDECREF(server->failed);
    Py_XDECREF(server->access_log);
    Py_XDECREF(server->notice);
    Py_TYPE(self)->tp_free(self);
}

static PyMethodDef server_methods[] = {
    {"listen", server_listen, METH_VARARGS, NULL},
    {"start", server_start, METH_NOARGS, NULL},
    {"drain", server_drain, METH_NOARGS, NULL},
    {"kill", server_kill, METH_NOARGS, NULL},
    {"dispatch", server_dispatch, METH_NOARGS, NULL},
    {"learn", server_learn, METH_VARARGS, NULL},
    {"stats", server_stats, METH_NOARGS, NULL},
    {"methods", server_methods_counts, METH_NOARGS, NULL},
    {"connections", server_connections, METH_NOARGS, NULL},
    {"access_log", server_access_log, METH_O, NULL},
    {"on_notice", server_on_notice, METH_O, NULL},
    {"warning", server_warning, METH_NOARGS, NULL},
    {0},
};

static PyTypeObject GrpcServer_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "gmp._core.GrpcServer",
    .tp_doc = PyDoc_STR("The engine under gmp.grpc's server."),
    .tp_basicsize = sizeof(GrpcServer),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = server_new,
    .tp_dealloc = server_dealloc,
    .tp_traverse = server_traverse,
    .tp_methods = server_methods,
};

/* _grpc_setup(status codes, metadatum, decompress, compress, current_var): once, by gmp.grpc. */
static PyObject *
grpc_setup(PyObject *module, PyObject *args)
{
    PyObject *codes, *datum, *decompress, *compress, *var;
    if (!PyArg_ParseTuple(args, "O!OOOO!", &PyDict_Type, &codes, &datum, &decompress, &compress, &PyContextVar_Type,
                          &var))
        return NULL;
    Py_XSETREF(status_codes, Py_NewRef(codes));
    Py_XSETREF(metadatum, Py_NewRef(datum));
    Py_XSETREF(decompress_fn, Py_NewRef(decompress));
    Py_XSETREF(compress_fn, Py_NewRef(compress));
    Py_XSETREF(current_var, Py_NewRef(var));
    Py_RETURN_NONE;
}

static PyMethodDef grpc_methods[] = {
    {"_grpc_setup", grpc_setup, METH_VARARGS, NULL},
    {"_grpc_run", run_call, METH_O, NULL},
    {"_grpc_callbacks", run_callbacks, METH_O, NULL},
    {0},
};

int
grpc_module_init(PyObject *module)
{
    if (PyType_Ready(&GrpcCall_Type) < 0 || PyType_Ready(&GrpcServer_Type) < 0 || tls_module_init(module) < 0 ||
        PyModule_AddFunctions(module, grpc_methods) < 0 ||
        PyModule_AddObjectRef(module, "GrpcCall", (PyObject *)&GrpcCall_Type) < 0 ||
        PyModule_AddObjectRef(module, "GrpcServer", (PyObject *)&GrpcServer_Type) < 0)
        return -1;
    run_call_fn = PyObject_GetAttrString(module, "_grpc_run");
    run_callbacks_fn = PyObject_GetAttrString(module, "_grpc_callbacks");
    return run_call_fn == NULL || run_callbacks_fn == NULL ? -1 : 0;
}

void
grpc_before_fork(void)
{
    h2_tls_before_fork();
}

void
grpc_after_fork(void)
{
    h2_tls_after_fork();
}

void
grpc_afterfork_child(void)
{
    generation++;
    atomic_store(&py_served, 0u);
    h2_afterfork_child();
}
