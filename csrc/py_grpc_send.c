/* py_grpc_send.c: what a call sends: metadata and messages from Python objects to one H2Op, which is posted. */
#include "py_grpc.h"

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
int
grpc_send(GrpcCall *call, const GrpcSending *s)
{
    H2Stream *st = call->st;
    Blob b = {0};
    PyObject *data = Py_XNewRef(s->data);
    int encoding = call->head_allowed || data != NULL ? encoding_of_call(call) : ENC_IDENTITY, r = -1;
    bool compressed = false;
    size_t head = 0, details = 0;
    uint32_t nhead = 0;
    if (data != NULL && encoding != ENC_IDENTITY && !call->plain_next && PyBytes_GET_SIZE(data) > 0) {
        PyObject *less = PyObject_CallFunction(grpc_compress, "iO", encoding, data);
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
