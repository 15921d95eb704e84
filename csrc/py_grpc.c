/* py_grpc.c: gmp._core.GrpcServer: the engine's calls (h2.h) as Python goroutines.
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
#include "py_grpc.h"

#include "py_tls.h"

#include <errno.h>

uint32_t grpc_generation;
PyObject *grpc_status_codes, *grpc_metadatum, *grpc_current_var, *grpc_decompress, *grpc_compress;
static PyTypeObject GrpcServer_Type;
static PyObject *run_call_fn, *run_callbacks_fn;

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
    int code = grpc_recv_msg(call->st, &m);
    if (code == GMP_ECLOSED)
        Py_RETURN_NONE;
    if (code != GMP_OK)
        return NULL;
    if (m == NULL)
        return fail(call, "no request");
    PyObject *request = grpc_msg_bytes(call->server, call->st, m);
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
    int r = grpc_finish(call, response, grpc_code_number(call->code), call->details, call->trailing);
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
    PyObject *r = PyContextVar_Set(grpc_current_var, context);
    if (r == NULL)
        return NULL;
    Py_DECREF(r); /* a token */
    if (method == NULL || !method->fast)
        return PyObject_CallFunctionObjArgs(
            server->serve, context, method != NULL && method->handler != NULL ? method->handler : Py_None, NULL);
    if (!grpc_enter(call))
        r = fail(call, "busy");
    else
        r = run_unary(call, method);
    grpc_leave(call);
    if (GMP_UNLIKELY(!call->finished))
        grpc_account_early(call);
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
    if (server->generation == grpc_generation)
        return server->srv;
    PyErr_SetString(PyExc_RuntimeError, "the server is the parent process's: make one in the child");
    return NULL;
}

static int
start_call(GrpcServer *server, H2Stream *st)
{
    if (st->method != NULL && h2_ended(st) != END_NOT) { /* nobody has seen it yet, and nobody needs to */
        int code = grpc_early_code(st);
        grpc_tell_log(server, st, NULL, code, grpc_count(server, st, code));
        h2_stream_unref(st);
        return 0;
    }
    PyObject *context = grpc_call_new(server, st);
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

static PyObject *
server_methods_counts(PyObject *self, PyObject *unused)
{
    return engine_of(self) != NULL ? grpc_method_counts((GrpcServer *)self) : NULL;
}

static PyObject *
server_connections(PyObject *self, PyObject *unused)
{
    H2Server *srv = engine_of(self);
    return srv != NULL ? grpc_connections(srv) : NULL;
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
    server->generation = grpc_generation;
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
    if (server->srv != NULL && server->generation == grpc_generation) {
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
    Py_XSETREF(grpc_status_codes, Py_NewRef(codes));
    Py_XSETREF(grpc_metadatum, Py_NewRef(datum));
    Py_XSETREF(grpc_decompress, Py_NewRef(decompress));
    Py_XSETREF(grpc_compress, Py_NewRef(compress));
    Py_XSETREF(grpc_current_var, Py_NewRef(var));
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
    grpc_generation++;
    atomic_store(&py_served, 0u);
    h2_afterfork_child();
}
