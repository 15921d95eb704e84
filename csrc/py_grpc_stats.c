/* py_grpc_stats.c: what a server tells of itself: counts of calls by method, the access log, connections. */
#include "py_grpc.h"

static GrpcCounts *
counts_of(GrpcServer *server, H2Stream *st)
{
    H2Method *known = st->method != NULL ? st->method : h2_find(server->srv, st->head, st->path_len);
    return known != NULL ? &((GrpcMethod *)known->app)->counts : &server->others;
}

static int
code_index(int code)
{
    return code >= 0 && code < GRPC_CODES ? code : GRPC_UNKNOWN;
}

/* A call has ended with this code: counts it, and returns how long it took (ns). */
int64_t
grpc_count(GrpcServer *server, H2Stream *st, int code)
{
    GrpcCounts *n = counts_of(server, st);
    int64_t ns = nanotime() - st->started;
    uint64_t us = (uint64_t)ns / 1000;
    int bucket = us <= 1 ? 0 : 63 - __builtin_clzll(us);
    n->codes[code_index(code)]++;
    n->buckets[bucket < GRPC_BUCKETS ? bucket : GRPC_BUCKETS - 1]++;
    n->ns += ns;
    return ns;
}

/* It was counted with one code and then ended with another one. */
void
grpc_recount(GrpcServer *server, H2Stream *st, int from, int to)
{
    GrpcCounts *n = counts_of(server, st);
    n->codes[code_index(from)]--;
    n->codes[code_index(to)]++;
}

/* Tells the access log, which may park.  In the call's own goroutine that delays nobody else; where it is another one (the dispatching
 * goroutine, with call NULL; who drops the last reference; who ends a call by its callback), the log gets a goroutine. */
void
grpc_tell_log(GrpcServer *server, H2Stream *st, GrpcCall *call, int code, int64_t ns)
{
    if (GMP_LIKELY(server->access_log == NULL))
        return;
    PyObject *type, *value, *tb, *current = NULL;
    PyErr_Fetch(&type, &value, &tb);
    if (call != NULL && PyContextVar_Get(grpc_current_var, NULL, &current) < 0)
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
int
grpc_early_code(H2Stream *st)
{
    static const uint8_t codes[] = {
        [END_NOT] = GRPC_UNKNOWN,      [END_RESET] = GRPC_CANCELLED, [END_LOST] = GRPC_CANCELLED,
        [END_CANCEL] = GRPC_CANCELLED, [END_STATUS] = GRPC_UNKNOWN,  [END_DEADLINE] = GRPC_DEADLINE_EXCEEDED,
    };
    H2End ended = h2_ended(st);
    return ended == END_TOO_LARGE ? (int)atomic_load_relaxed(&st->cancel) : codes[ended];
}

void
grpc_account_early(GrpcCall *call)
{
    if (call->counted)
        return;
    call->counted = true;
    int code = grpc_early_code(call->st);
    grpc_tell_log(call->server, call->st, call, code, grpc_count(call->server, call->st, code));
}

/* (codes, buckets, seconds) */
static PyObject *
counts_tuple(const GrpcCounts *n)
{
    PyObject *codes = PyTuple_New(GRPC_CODES), *buckets = PyTuple_New(GRPC_BUCKETS);
    for (int i = 0; i < GRPC_CODES && codes != NULL; i++)
        PyTuple_SET_ITEM(codes, i, PyLong_FromUnsignedLongLong(n->codes[i]));
    for (int i = 0; i < GRPC_BUCKETS && buckets != NULL; i++)
        PyTuple_SET_ITEM(buckets, i, PyLong_FromUnsignedLongLong(n->buckets[i]));
    if (codes == NULL || buckets == NULL) {
        Py_XDECREF(codes);
        Py_XDECREF(buckets);
        return NULL;
    }
    return Py_BuildValue("(NNd)", codes, buckets, (double)n->ns / 1e9);
}

/* {path: counts_tuple}; "" for calls to no known method. */
PyObject *
grpc_method_counts(GrpcServer *server)
{
    PyObject *dict = PyDict_New();
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

/* What grpc_connections copies of a connection. */
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
PyObject *
grpc_connections(H2Server *srv)
{
    PyObject *list = PyList_New(0);
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
