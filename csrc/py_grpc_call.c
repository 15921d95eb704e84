/* py_grpc_call.c: gmp._core.GrpcCall: a call as its handler sees it, the C half of gmp.grpc's ServicerContext (gmp/grpc/_context.py).
 * The methods whose names begin with _ are for gmp/grpc/_call.py. */
#include "py_grpc.h"

#include "py_tls.h"

PyObject *
grpc_call_new(GrpcServer *server, H2Stream *st)
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
    if (st != NULL && call->server->generation == grpc_generation) {
        grpc_account_early(call);
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
    if (call->st != NULL && call->server->generation == grpc_generation)
        return call->st;
    PyErr_SetString(PyExc_RuntimeError,
                    call->st == NULL ? "a context is made by the server" : "the call is the parent process's");
    return NULL;
}

/* Waits until the call has a message, or what ends it.  A negative code, GMP_OK, or 1: an exception is set. */
int
grpc_recv_msg(H2Stream *st, H2Msg **m)
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
PyObject *
grpc_msg_bytes(GrpcServer *server, H2Stream *st, H2Msg *m)
{
    PyObject *data = PyBytes_FromStringAndSize(m->data, (Py_ssize_t)m->len);
    bool compressed = m->compressed;
    free(m);
    if (data != NULL && compressed)
        Py_SETREF(data, PyObject_CallFunction(grpc_decompress, "iOL", (int)st->encoding, data,
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
    switch (grpc_recv_msg(st, &m)) {
    case GMP_OK:
        if (m == NULL)
            Py_RETURN_NONE;
        return grpc_msg_bytes(((GrpcCall *)self)->server, st, m);
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
    GrpcSending s = {.data = args[0], .status = -1};
    if (grpc_send((GrpcCall *)self, &s) < 0)
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
    GrpcSending s = {.head = metadata, .status = -1};
    if (grpc_send(call, &s) < 0)
        return NULL;
    Py_RETURN_TRUE;
}

int
grpc_code_number(PyObject *code)
{
    if (code == NULL || code == Py_None)
        return GRPC_OK;
    PyObject *number = PyDict_GetItemWithError(grpc_status_codes, code);
    if (number == NULL) {
        PyErr_Clear();
        return GRPC_UNKNOWN;
    }
    return (int)PyLong_AsLong(number);
}

void
grpc_leave(GrpcCall *call)
{
    if (call->entered) {
        call->entered = false;
        call->server->active--;
    }
}

/* Sends the status, and the last message with it.  False: the call had ended before.  -1: an exception. */
int
grpc_finish(GrpcCall *call, PyObject *data, int status, PyObject *details, PyObject *trailing)
{
    if (call->finished || !h2_finish(call->st))
        return 0;
    call->finished = true;
    grpc_leave(call);
    bool count = !call->counted;
    call->counted = true;
    int64_t ns = count ? grpc_count(call->server, call->st, status) : 0; /* before the client knows */
    GrpcSending s = {.data = data, .status = status, .details = details, .trailing = trailing};
    int r = 1;
    PyObject *type = NULL, *value = NULL, *tb = NULL;
    if (grpc_send(call, &s) < 0) { /* the metadata or the details are no good: the client gets a status all the same */
        r = -1;
        PyErr_Fetch(&type, &value, &tb);
        s = (GrpcSending){.status = GRPC_INTERNAL, .details = PyUnicode_FromString("Failed to send the status!")};
        if (grpc_send(call, &s) < 0)
            PyErr_Clear();
        Py_XDECREF(s.details);
        if (count)
            grpc_recount(call->server, call->st, status, GRPC_INTERNAL);
    }
    if (count)
        grpc_tell_log(call->server, call->st, call, s.status, ns);
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
    int r = grpc_finish(call, args[0] == Py_None ? NULL : args[0], grpc_code_number(code), details, call->trailing);
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
    int r = grpc_finish((GrpcCall *)self, NULL, grpc_code_number(args[0]), args[1], NULL);
    return r < 0 ? NULL : PyBool_FromLong(r);
}

/* _enter(): False: maximum_concurrent_rpcs are running. */
bool
grpc_enter(GrpcCall *call)
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
    return stream_of(self) == NULL ? NULL : PyBool_FromLong(grpc_enter((GrpcCall *)self));
}

static PyObject *
call_leave(PyObject *self, PyObject *unused)
{
    grpc_leave((GrpcCall *)self);
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
    PyObject *r = key != NULL && value != NULL ? PyObject_CallFunctionObjArgs(grpc_metadatum, key, value, NULL) : NULL;
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

PyTypeObject GrpcCall_Type = {
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
