/* py_chan.c: Chan, native.Chan, and select with its cases.
 *
 * The core moves elements as words.  Those of a Chan are owned references, those of a native.Chan plain 64-bit numbers, which C
 * goroutines send and receive too: a Slot holds either.
 */
#include "py_gmp.h"

#include <stddef.h>

#include "native.h"

PyObject *ChanClosed;

typedef union Slot {
    PyObject *object;
    int64_t word;
} Slot;

static PyTypeObject NativeChan_Type;

/* value as an element of ch: a new reference, or the number.  -1 with an exception. */
static int
slot_put(PyChan *ch, PyObject *value, Slot *s)
{
    if (GMP_LIKELY(ch->native == NULL)) {
        s->object = Py_NewRef(value);
        return 0;
    }
    if (!PyIndex_Check(value)) {
        PyErr_Format(PyExc_TypeError, "a gmp.native.Chan carries ints, not %.200s", Py_TYPE(value)->tp_name);
        return -1;
    }
    PyObject *n = PyNumber_Index(value);
    if (n == NULL)
        return -1;
    int overflow;
    s->word = PyLong_AsLongLongAndOverflow(n, &overflow);
    Py_DECREF(n);
    if (overflow != 0)
        PyErr_Format(PyExc_OverflowError, "a gmp.native.Chan carries ints of 64 bits with a sign, and %R is too %s",
                     value, overflow > 0 ? "large" : "small");
    return overflow != 0 || (s->word == -1 && PyErr_Occurred()) ? -1 : 0;
}

/* What an element that was received means: a new reference, or NULL with an exception. */
static inline PyObject *
slot_take(PyChan *ch, Slot s)
{
    if (GMP_UNLIKELY(ch->native != NULL))
        return PyLong_FromLongLong(s.word);
    return GMP_LIKELY(!is_time(s.object)) ? s.object : py_time_value(s.object);
}

static inline void
slot_drop(PyChan *ch, Slot s)
{
    if (ch->native == NULL && !is_time(s.object))
        Py_DECREF(s.object);
}

static void
raise_closed(const char *message)
{
    PyErr_SetString(ChanClosed, message);
}

/* ---- making ---- */

static int
parse_cap(PyObject *args, PyObject *kwargs, Py_ssize_t *n)
{
    static char *keywords[] = {"cap", NULL};
    PyObject *cap = NULL;
    *n = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:Chan", keywords, &cap))
        return -1;
    if (cap == NULL)
        return 0;
    if (!PyIndex_Check(cap)) {
        PyErr_Format(PyExc_TypeError, "Chan() cap must be an int, the number of values it buffers, not %.200s",
                     Py_TYPE(cap)->tp_name);
        return -1;
    }
    *n = PyNumber_AsSsize_t(cap, PyExc_OverflowError);
    if (*n == -1 && PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_OverflowError))
            PyErr_Format(PyExc_OverflowError, "Chan() cap %S does not fit a machine word", cap);
        return -1;
    }
    if (*n < 0) {
        PyErr_Format(PyExc_ValueError, "Chan() cap must be 0 or more, not %zd", *n);
        return -1;
    }
    return 0;
}

static PyObject *
chan_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    Py_ssize_t n;
    if (parse_cap(args, kwargs, &n) < 0)
        return NULL;
    PyChan *self = (PyChan *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    int code;
    if (type == &NativeChan_Type) {
        code = gmp_chan_new(&self->native, sizeof(int64_t), (size_t)n);
        self->c = code == GMP_OK ? &self->native->c : NULL;
    }
    else {
        code = chan_init(&self->own, sizeof(PyObject *), (size_t)n);
        self->c = &self->own;
    }
    if (code < 0) {
        self->c = NULL;
        Py_DECREF(self);
        if (code == GMP_EINVAL)
            PyErr_Format(PyExc_ValueError, "Chan() cap %zd is too large", n);
        else
            PyErr_Format(PyExc_MemoryError, "Chan(): memory for a buffer of %zd values was refused", n);
        return NULL;
    }
    return (PyObject *)self;
}

PyObject *
py_chan_new(size_t cap)
{
    PyChan *self = (PyChan *)Chan_Type.tp_alloc(&Chan_Type, 0);
    if (self == NULL)
        return NULL;
    self->c = &self->own;
    if (chan_init(self->c, sizeof(PyObject *), cap) < 0) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static int
chan_traverse(PyObject *self, visitproc visit, void *arg)
{
    Hchan *c = ((PyChan *)self)->c;
    if (c == NULL || ((PyChan *)self)->native != NULL || ((PyChan *)self)->timer != NULL)
        return 0; /* no objects; and a timer may be sending, without the GIL */
    PyObject **buf = (PyObject **)c->buf;
    for (size_t i = 0, k = c->recvx; i < c->qcount; i++, k = k + 1 == c->dataqsiz ? 0 : k + 1)
        Py_VISIT(buf[k]);
    return 0;
}

static int
chan_clear(PyObject *self)
{
    Hchan *c = ((PyChan *)self)->c;
    PyObject *v;
    while (c != NULL && c->qcount > 0 && chanrecv(c, &v, 0) == GMP_OK)
        if (((PyChan *)self)->native == NULL && !is_time(v))
            Py_DECREF(v);
    return 0;
}

static void
chan_dealloc(PyObject *self)
{
    PyObject_GC_UnTrack(self);
    Py_TRASHCAN_BEGIN(self, chan_dealloc) /* channels in channels, thousands deep */
        if (((PyChan *)self)->weakrefs != NULL) PyObject_ClearWeakRefs(self);
    py_time_free(((PyChan *)self)->timer);
    chan_clear(self);
    if (((PyChan *)self)->c != NULL)
        chan_term(((PyChan *)self)->c);
    Py_TYPE(self)->tp_free(self);
    Py_TRASHCAN_END
}

static void
native_chan_dealloc(PyObject *self)
{
    PyChan *ch = (PyChan *)self;
    if (ch->weakrefs != NULL)
        PyObject_ClearWeakRefs(self);
    /* Refused while a C goroutine waits on it: then nobody will wake that one, and the channel stays. */
    if (ch->native != NULL)
        (void)gmp_chan_free(ch->native);
    Py_TYPE(self)->tp_free(self);
}

/* ---- operations ---- */

static GMP_NOINLINE int
recv_slow(Hchan *c, Slot *v, PyWait *w)
{
    int code;
    do {
        if (py_wait_begin(w) < 0)
            return 1;
        code = chanrecv(c, v, w->timeout);
        if (code == GMP_OK || code == GMP_ECLOSED)
            return code;
        int again = py_wait_again(w, code);
        if (again < 0)
            return 1;
        if (again == 0) {
            py_raise_code(code, "Chan.recv()", w);
            return 1;
        }
    } while (true);
}

/* GMP_OK, GMP_ECLOSED, or 1 with an exception. */
static inline int
recv_value(PyChan *self, Slot *v, int64_t timeout)
{
    int code = chanrecv(self->c, v, 0);
    if (code != GMP_ETIMEDOUT)
        return code;
    PyWait w = {.timeout = timeout};
    if (timeout == 0) {
        py_raise_code(code, "Chan.recv()", &w);
        return 1;
    }
    return recv_slow(self->c, v, &w);
}

static GMP_NOINLINE int
send_slow(Hchan *c, const Slot *v, PyWait *w)
{
    int code;
    do {
        if (py_wait_begin(w) < 0)
            return 1;
        code = chansend(c, v, w->timeout);
        if (code == GMP_OK || code == GMP_ECLOSED)
            return code;
        int again = py_wait_again(w, code);
        if (again < 0)
            return 1;
        if (again == 0) {
            py_raise_code(code, "Chan.send()", w);
            return 1;
        }
    } while (true);
}

/* The single optional argument of recv; the second one of send. */
static int
timeout_from(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames, Py_ssize_t before, const char *what,
             int64_t *ns)
{
    Py_ssize_t nkw = kwnames != NULL ? PyTuple_GET_SIZE(kwnames) : 0;
    if (nargs + nkw > before + 1 || nargs < before) {
        PyErr_Format(PyExc_TypeError, "%s takes %s, %zd arguments were given", what,
                     before == 0 ? "an optional timeout" : "a value and an optional timeout", nargs + nkw);
        return -1;
    }
    if (nkw == 1 && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(kwnames, 0), "timeout") != 0) {
        PyErr_Format(PyExc_TypeError, "%s has no argument %R", what, PyTuple_GET_ITEM(kwnames, 0));
        return -1;
    }
    return py_timeout(args[before], what, ns);
}

static PyObject *
py_chan_recv(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    int64_t timeout = -1;
    if (GMP_UNLIKELY(nargs != 0 || kwnames != NULL) &&
        timeout_from(args, nargs, kwnames, 0, "Chan.recv()", &timeout) < 0)
        return NULL;
    Slot v;
    int code = recv_value((PyChan *)self, &v, timeout);
    if (GMP_LIKELY(code == GMP_OK))
        return slot_take((PyChan *)self, v);
    if (code == GMP_ECLOSED)
        raise_closed("receive on closed channel");
    return NULL;
}

static PyObject *
py_chan_recv_ok(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    int64_t timeout = -1;
    if ((nargs != 0 || kwnames != NULL) && timeout_from(args, nargs, kwnames, 0, "Chan.recv_ok()", &timeout) < 0)
        return NULL;
    Slot v;
    int code = recv_value((PyChan *)self, &v, timeout);
    if (code > 0)
        return NULL;
    if (code == GMP_ECLOSED)
        return PyTuple_Pack(2, Py_None, Py_False);
    PyObject *value = slot_take((PyChan *)self, v);
    return value != NULL ? Py_BuildValue("(NO)", value, Py_True) : NULL;
}

static PyObject *
py_chan_send(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    int64_t timeout = -1;
    if (GMP_UNLIKELY(nargs != 1 || kwnames != NULL) &&
        timeout_from(args, nargs, kwnames, 1, "Chan.send()", &timeout) < 0)
        return NULL;
    PyChan *ch = (PyChan *)self;
    Slot v;
    if (slot_put(ch, args[0], &v) < 0)
        return NULL;
    int code = chansend(ch->c, &v, 0);
    if (GMP_LIKELY(code == GMP_OK))
        Py_RETURN_NONE;
    if (code == GMP_ETIMEDOUT) {
        PyWait w = {.timeout = timeout};
        if (timeout == 0) {
            py_raise_code(code, "Chan.send()", &w);
            code = 1;
        }
        else {
            code = send_slow(ch->c, &v, &w);
        }
        if (code == GMP_OK)
            Py_RETURN_NONE;
    }
    slot_drop(ch, v);
    if (code == GMP_ECLOSED)
        raise_closed("send on closed channel");
    return NULL;
}

static PyObject *
py_chan_close(PyObject *self, PyObject *unused)
{
    if (chanclose(((PyChan *)self)->c) < 0) {
        raise_closed("close of closed channel");
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
chan_next(PyObject *self)
{
    Slot v;
    return recv_value((PyChan *)self, &v, -1) == GMP_OK ? slot_take((PyChan *)self, v)
                                                        : NULL; /* closed: the iteration ends */
}

static Py_ssize_t
chan_length(PyObject *self)
{
    if (((PyChan *)self)->timer != NULL)
        return 0; /* as in Go: a timer's channel looks unbuffered */
    return (Py_ssize_t)chanlen(((PyChan *)self)->c);
}

static int
chan_bool(PyObject *self)
{
    return 1; /* an empty channel is not a false one */
}

static PyObject *
chan_get_cap(PyObject *self, void *closure)
{
    return PyLong_FromSize_t(((PyChan *)self)->timer != NULL ? 0 : ((PyChan *)self)->c->dataqsiz);
}

static PyObject *
chan_get_closed(PyObject *self, void *closure)
{
    return PyBool_FromLong(((PyChan *)self)->c->closed);
}

static PyObject *
chan_repr(PyObject *self)
{
    Hchan *c = ((PyChan *)self)->c;
    return PyUnicode_FromFormat("<%s at %p, %zu of %zu%s>", Py_TYPE(self)->tp_name, self, chanlen(c), c->dataqsiz,
                                c->closed ? ", closed" : "");
}

static PyMethodDef chan_type_methods[] = {
    {"send", (PyCFunction)(void (*)(void))py_chan_send, METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR("send($self, value, /, timeout=None)\n--\n\nSend value, parking until there is room or a receiver.\n\n"
               "timeout: seconds; None waits for ever, 0 tries.  Raises ChanClosed (also when the channel is closed "
               "during the\n"
               "wait), TimeoutError.  Go: ch <- value, runtime.chansend.")},
    {"recv", (PyCFunction)(void (*)(void))py_chan_recv, METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR(
         "recv($self, /, timeout=None)\n--\n\nReceive a value, parking until there is one.\n\n"
         "timeout: seconds; None waits for ever, 0 tries.  Raises ChanClosed when the channel is closed and drained,\n"
         "TimeoutError.  Go: <-ch, runtime.chanrecv.")},
    {"recv_ok", (PyCFunction)(void (*)(void))py_chan_recv_ok, METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR("recv_ok($self, /, timeout=None)\n--\n\nLike recv, but returns (value, True), or (None, False) when "
               "closed.\n\n"
               "Go: v, ok := <-ch.")},
    {"close", py_chan_close, METH_NOARGS,
     PyDoc_STR("close($self, /)\n--\n\nNo more values will be sent.  What is buffered can still be received.\n\n"
               "Raises ChanClosed the second time.  Go: close(ch), runtime.closechan.")},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, PyDoc_STR("Chan[T]: for type annotations.")},
    {0},
};
static PyGetSetDef chan_getset[] = {
    {"cap", chan_get_cap, NULL, PyDoc_STR("How many values the channel buffers.  Go: cap(ch)."), NULL},
    {"closed", chan_get_closed, NULL, PyDoc_STR("True after close()."), NULL},
    {0},
};
static PyObject *
chan_get_pointer(PyObject *self, void *closure)
{
    return PyLong_FromVoidPtr(((PyChan *)self)->native);
}

static PyGetSetDef native_chan_getset[] = {
    {"cap", chan_get_cap, NULL, PyDoc_STR("How many numbers the channel buffers.  Go: cap(ch)."), NULL},
    {"closed", chan_get_closed, NULL, PyDoc_STR("True after close()."), NULL},
    {"pointer", chan_get_pointer, NULL,
     PyDoc_STR("The gmp_chan * of gmp.h, an int: what C code takes.  Valid as long as this object lives."), NULL},
    {0},
};
static PySequenceMethods chan_sequence = {.sq_length = chan_length};
static PyNumberMethods chan_number = {.nb_bool = chan_bool};

PyTypeObject Chan_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "gmp.Chan",
    .tp_doc = PyDoc_STR(
        "Chan(cap=0)\n--\n\nA channel that carries values between goroutines, and between threads.\n\n"
        "cap: how many values it buffers (int >= 0); 0 makes each send meet its receive.  `for v in ch` receives\n"
        "until the channel is closed; len(ch) is the number of buffered values.  Go: make(chan T, cap)."),
    .tp_basicsize = sizeof(PyChan),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = chan_new,
    .tp_dealloc = chan_dealloc,
    .tp_traverse = chan_traverse,
    .tp_clear = chan_clear,
    .tp_repr = chan_repr,
    .tp_iter = PyObject_SelfIter,
    .tp_iternext = chan_next,
    .tp_methods = chan_type_methods,
    .tp_getset = chan_getset,
    .tp_as_sequence = &chan_sequence,
    .tp_as_number = &chan_number,
    .tp_weaklistoffset = offsetof(PyChan, weakrefs),
};

static PyTypeObject NativeChan_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "gmp.native.Chan",
    .tp_doc = PyDoc_STR(
        "Chan(cap=0)\n--\n\nA channel of 64-bit ints with a sign, that Python and C goroutines send and receive "
        "alike.\n\n"
        "C code is given its pointer and calls gmp_chan_send and gmp_chan_recv of gmp.h, with elements of 8 bytes; "
        "here it\n"
        "has the methods of gmp.Chan and goes into gmp.select.  Keep this object while C code uses the pointer."),
    .tp_basicsize = sizeof(PyChan),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = chan_new,
    .tp_dealloc = native_chan_dealloc,
    .tp_repr = chan_repr,
    .tp_iter = PyObject_SelfIter,
    .tp_iternext = chan_next,
    .tp_methods = chan_type_methods,
    .tp_getset = native_chan_getset,
    .tp_as_sequence = &chan_sequence,
    .tp_as_number = &chan_number,
    .tp_weaklistoffset = offsetof(PyChan, weakrefs),
};

/* ---- select ---- */

typedef struct Case {
    PyObject_HEAD
    PyChan *ch;      /* NULL: a nil channel */
    PyObject *value; /* NULL for a receive */
} Case;

static PyTypeObject Case_Type;
static PyObject *selected_type; /* gmp._select.Selected */

#define FREE_CASES 64
static Case *free_cases[FREE_CASES];
static int nfree_cases;

static void
case_dealloc(PyObject *self)
{
    Case *c = (Case *)self;
    PyObject_GC_UnTrack(self);
    Py_CLEAR(c->ch);
    Py_CLEAR(c->value);
    if (nfree_cases < FREE_CASES)
        free_cases[nfree_cases++] = c;
    else
        PyObject_GC_Del(self);
}

static int
case_traverse(PyObject *self, visitproc visit, void *arg)
{
    Case *c = (Case *)self;
    Py_VISIT(c->ch);
    Py_VISIT(c->value);
    return 0;
}

static PyObject *
case_repr(PyObject *self)
{
    Case *c = (Case *)self;
    PyObject *ch = c->ch != NULL ? (PyObject *)c->ch : Py_None;
    return c->value != NULL ? PyUnicode_FromFormat("gmp.send(%R, %R)", ch, c->value)
                            : PyUnicode_FromFormat("gmp.recv(%R)", ch);
}

static PyTypeObject Case_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "gmp.Case",
    .tp_doc = PyDoc_STR("A case of select: made by gmp.recv(ch) or gmp.send(ch, value)."),
    .tp_basicsize = sizeof(Case),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = case_dealloc,
    .tp_traverse = case_traverse,
    .tp_repr = case_repr,
};

static PyObject *
case_new(PyObject *ch, PyObject *value, const char *what)
{
    if (ch != Py_None && !PyObject_TypeCheck(ch, &Chan_Type) && !Py_IS_TYPE(ch, &NativeChan_Type)) {
        PyErr_Format(PyExc_TypeError,
                     "%s argument 1 must be a gmp.Chan, or None for a channel that is never ready, not %.200s", what,
                     Py_TYPE(ch)->tp_name);
        return NULL;
    }
    Case *c;
    if (nfree_cases > 0) {
        c = free_cases[--nfree_cases];
        (void)PyObject_INIT((PyObject *)c, &Case_Type);
    }
    else {
        c = PyObject_GC_New(Case, &Case_Type);
        if (c == NULL)
            return NULL;
    }
    c->ch = ch == Py_None ? NULL : (PyChan *)Py_NewRef(ch);
    c->value = Py_XNewRef(value);
    PyObject_GC_Track(c);
    return (PyObject *)c;
}

static PyObject *
py_recv_case(PyObject *module, PyObject *ch)
{
    return case_new(ch, NULL, "recv()");
}

static PyObject *
py_send_case(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2) {
        PyErr_Format(PyExc_TypeError, "send() takes a channel and a value, %zd arguments were given", nargs);
        return NULL;
    }
    return case_new(args[0], args[1], "send()");
}

#define INLINE_CASES 4

static PyObject *
selected(Py_ssize_t index, PyObject *value, bool ok) /* steals value */
{
    PyObject *items[3] = {PyLong_FromSsize_t(index), value, Py_NewRef(ok ? Py_True : Py_False)};
    PyTypeObject *type = (PyTypeObject *)selected_type;
    PyObject *r = items[0] != NULL ? type->tp_alloc(type, 3) : NULL;
    for (int i = 0; i < 3; i++) {
        if (r != NULL)
            PyTuple_SET_ITEM(r, i, items[i]);
        else
            Py_XDECREF(items[i]);
    }
    return r;
}

static int
select_keywords(PyObject *const *values, PyObject *kwnames, int *has_default, int64_t *timeout)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(kwnames); i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);
        if (PyUnicode_CompareWithASCIIString(name, "default") == 0) {
            *has_default = PyObject_IsTrue(values[i]);
            if (*has_default < 0)
                return -1;
        }
        else if (PyUnicode_CompareWithASCIIString(name, "timeout") == 0) {
            if (py_timeout(values[i], "select()", timeout) < 0)
                return -1;
        }
        else {
            PyErr_Format(PyExc_TypeError, "select() has no argument %R, only cases, default and timeout", name);
            return -1;
        }
    }
    return 0;
}

static int
select_wait(Scase *cases, int n, PyWait *w, bool *ok)
{
    for (;;) {
        if (py_wait_begin(w) < 0)
            return INT32_MIN;
        int r = selectgo(cases, n, w->timeout, ok);
        if (r >= 0 || r == GMP_ETIMEDOUT)
            return r;
        int again = py_wait_again(w, r);
        if (again == 0)
            py_raise_code(r, "select()", w);
        if (again <= 0)
            return INT32_MIN;
    }
}

static PyObject *
py_select(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    int64_t timeout = -1;
    int has_default = 0;
    if (kwnames != NULL && select_keywords(args + nargs, kwnames, &has_default, &timeout) < 0)
        return NULL;
    if (nargs > UINT16_MAX) {
        PyErr_Format(PyExc_ValueError, "select() takes at most %d cases, %zd were given", UINT16_MAX, nargs);
        return NULL;
    }
    Scase inline_cases[INLINE_CASES];
    Slot inline_values[INLINE_CASES];
    Scase *cases = inline_cases;
    Slot *values = inline_values;
    if (nargs > INLINE_CASES) {
        cases = PyMem_Malloc((size_t)nargs * (sizeof(Scase) + sizeof(Slot)));
        if (cases == NULL)
            return PyErr_NoMemory();
        values = (Slot *)(cases + nargs);
    }
    PyObject *result = NULL;
    Py_ssize_t n = 0, sent = -1; /* the case whose value is the channel's now */
    for (; n < nargs; n++) {
        if (!Py_IS_TYPE(args[n], &Case_Type)) {
            PyErr_Format(PyExc_TypeError,
                         "select() argument %zd must be a case, gmp.recv(ch) or gmp.send(ch, value), not %.200s", n + 1,
                         Py_TYPE(args[n])->tp_name);
            goto done;
        }
        Case *c = (Case *)args[n];
        if (c->value != NULL && c->ch != NULL && slot_put(c->ch, c->value, &values[n]) < 0)
            goto done;
        cases[n] = (Scase){c->ch != NULL ? c->ch->c : NULL, &values[n], c->value != NULL};
    }
    bool ok = false;
    PyWait w = {.timeout = has_default ? 0 : timeout};
    int r = selectgo(cases, (int)nargs, 0, &ok);
    if (r == GMP_ETIMEDOUT && w.timeout != 0)
        r = select_wait(cases, (int)nargs, &w, &ok);
    if (r >= 0) {
        sent = cases[r].send && ok ? r : -1;
        if (!cases[r].send) {
            PyObject *got = ok ? slot_take(((Case *)args[r])->ch, values[r]) : Py_NewRef(Py_None);
            result = got != NULL ? selected(r, got, ok) : NULL;
        }
        else if (ok) {
            result = selected(r, Py_NewRef(Py_None), true);
        }
        else {
            raise_closed("send on closed channel");
        }
    }
    else if (r == GMP_ETIMEDOUT) {
        if (has_default)
            result = selected(-1, Py_NewRef(Py_None), false);
        else
            py_raise_code(r, "select()", &w);
    }
    else if (r != INT32_MIN) {
        py_raise_code(r, "select()", &w);
    }
done:
    for (Py_ssize_t i = 0; i < n; i++)
        if (cases[i].send && i != sent && ((Case *)args[i])->ch != NULL)
            slot_drop(((Case *)args[i])->ch, values[i]);
    if (cases != inline_cases)
        PyMem_Free(cases);
    return result;
}

static PyObject *
py_set_selected(PyObject *module, PyObject *type)
{
    if (!PyType_Check(type) || !PyType_IsSubtype((PyTypeObject *)type, &PyTuple_Type)) {
        PyErr_SetString(PyExc_TypeError, "a tuple class is needed");
        return NULL;
    }
    Py_XSETREF(selected_type, Py_NewRef(type));
    Py_RETURN_NONE;
}

PyMethodDef chan_methods[] = {
    {"recv", py_recv_case, METH_O,
     PyDoc_STR("recv($module, ch, /)\n--\n\nA case of select: receive from ch.  None stands for a channel that is "
               "never ready.")},
    {"send", (PyCFunction)(void (*)(void))py_send_case, METH_FASTCALL,
     PyDoc_STR("send($module, ch, value, /)\n--\n\nA case of select: send value to ch.  None stands for a channel that "
               "is never ready.")},
    {"select", (PyCFunction)(void (*)(void))py_select, METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR("select($module, /, *cases, default=False, timeout=None)\n--\n\nWait until one of the cases can go "
               "ahead, and do it.\n\n"
               "cases: recv(ch) and send(ch, value).  Of several that are ready one is chosen at random.  Returns\n"
               "Selected(index, value, ok): for a receive the value, or None with ok False when the channel is closed; "
               "for a\n"
               "send None and True.  default: do not wait, return index -1.  timeout: seconds, None for ever.\n"
               "Raises ChanClosed when the chosen case sends on a closed channel, TimeoutError.  Go: select, "
               "runtime.selectgo.")},
    {"_set_selected", py_set_selected, METH_O, NULL},
    {0},
};

int
chan_module_init(PyObject *module)
{
    ChanClosed =
        PyErr_NewExceptionWithDoc("gmp.ChanClosed",
                                  "Receive from a closed and drained channel, send on a closed one, or close of a\n"
                                  "closed one: where Go panics, or returns the zero value.",
                                  PyExc_RuntimeError, NULL);
    if (ChanClosed == NULL || PyModule_AddObjectRef(module, "ChanClosed", ChanClosed) < 0)
        return -1;
    if (PyType_Ready(&Chan_Type) < 0 || PyType_Ready(&NativeChan_Type) < 0 || PyType_Ready(&Case_Type) < 0)
        return -1;
    if (PyModule_AddObjectRef(module, "NativeChan", (PyObject *)&NativeChan_Type) < 0)
        return -1;
    if (PyModule_AddObjectRef(module, "Chan", (PyObject *)&Chan_Type) < 0)
        return -1;
    return PyModule_AddObjectRef(module, "Case", (PyObject *)&Case_Type);
}
