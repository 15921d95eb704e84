/* py_native.c: C functions as goroutines of the native set, started and joined from Python.  gmp/native.py has the arguments'
 * conversions; native.Chan is in py_chan.c.
 *
 * A handle has a wait group that its goroutine counts down when it ends, however it ends.  While it runs, the handle is on the
 * list `running`, whose reference keeps alive what C code was given: its arguments, and the wait group itself.
 *
 * A native goroutine may not touch Python: it holds no GIL, its thread has no thread state, its stack may be small.  Code that
 * enters Python in good order does so by PyGILState_Ensure, which first looks at what the thread's key names.  On the threads
 * of the native set that is an address in a page without access, so the attempt faults there and is recognised.
 */
#include "py_gmp.h"

#include "native.h"

typedef struct NativeGoroutine {
    PyObject_HEAD
    gmp_waitgroup *wg;
    PyObject *keep; /* what the goroutine uses */
    struct NativeGoroutine *next;
} NativeGoroutine;

/* GIL. */
static NativeGoroutine *running;
static size_t nrunning, prune_at = 64;
static PyTypeObject NativeGoroutine_Type;

static bool
ended(NativeGoroutine *ng)
{
    return gwaitgroup_wait(&ng->wg->wg, 0) == GMP_OK;
}

/* Lets go of those that have ended: when their number has doubled, so that it costs each spawn little. */
static void
prune(void)
{
    NativeGoroutine *done = NULL, **link = &running;
    while (*link != NULL) {
        NativeGoroutine *ng = *link;
        if (ended(ng)) {
            *link = ng->next;
            ng->next = done;
            done = ng;
            nrunning--;
        }
        else {
            link = &ng->next;
        }
    }
    prune_at = 2 * nrunning + 64;
    while (done != NULL) {
        NativeGoroutine *ng = done;
        done = ng->next;
        Py_DECREF(ng); /* may run Python code */
    }
}

static void
native_dealloc(PyObject *self)
{
    NativeGoroutine *ng = (NativeGoroutine *)self;
    if (ng->wg != NULL)
        (void)gmp_waitgroup_free(ng->wg);
    Py_XDECREF(ng->keep);
    PyObject_Free(self);
}

/* (function, argument, stack class, keep), the first two as addresses */
static PyObject *
py_native_go(PyObject *module, PyObject *args)
{
    PyObject *fn, *arg, *keep;
    int stack;
    if (!PyArg_ParseTuple(args, "O!O!iO", &PyLong_Type, &fn, &PyLong_Type, &arg, &stack, &keep))
        return NULL;
    void *f = PyLong_AsVoidPtr(fn), *a = PyLong_AsVoidPtr(arg);
    if (PyErr_Occurred())
        return NULL;
    if (py_stopped) {
        PyErr_SetString(PyExc_RuntimeError, "native.go(): the interpreter is shutting down");
        return NULL;
    }
    if (nrunning >= prune_at)
        prune();
    NativeGoroutine *ng = PyObject_New(NativeGoroutine, &NativeGoroutine_Type);
    if (ng == NULL)
        return NULL;
    ng->wg = NULL;
    ng->keep = Py_NewRef(keep);
    int code = gmp_waitgroup_new(&ng->wg);
    if (code == GMP_OK)
        code = gmp_waitgroup_go(ng->wg, (gmp_func)(uintptr_t)f, a, stack);
    if (code != GMP_OK) {
        Py_DECREF(ng);
        py_raise_code(code, "native.go()", NULL);
        return NULL;
    }
    Py_INCREF(ng); /* the list's */
    ng->next = running;
    running = ng;
    nrunning++;
    return (PyObject *)ng;
}

static PyObject *
native_join(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    const char *what = "native.Goroutine.join()";
    PyObject *timeout = py_timeout_arg(args, nargs, kwnames, what);
    return timeout != NULL ? py_waitgroup_wait(&((NativeGoroutine *)self)->wg->wg, timeout, what) : NULL;
}

static PyObject *
native_get_done(PyObject *self, void *closure)
{
    return PyBool_FromLong(ended((NativeGoroutine *)self));
}

static PyObject *
native_repr(PyObject *self)
{
    return PyUnicode_FromFormat("<gmp.native.Goroutine at %p %s>", self,
                                ended((NativeGoroutine *)self) ? "ended" : "running");
}

static PyMethodDef native_goroutine_methods[] = {
    {"join", (PyCFunction)(void (*)(void))native_join, METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR("join($self, /, timeout=None)\n--\n\nPark until the goroutine has ended.\n\n"
               "timeout: seconds; None waits for ever, 0 tries.  Raises TimeoutError.")},
    {0},
};
static PyGetSetDef native_getset[] = {
    {"done", native_get_done, NULL, PyDoc_STR("True when the goroutine has ended."), NULL},
    {0},
};
static PyTypeObject NativeGoroutine_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "gmp.native.Goroutine",
    .tp_doc = PyDoc_STR("A goroutine that runs a C function: made by gmp.native.go()."),
    .tp_basicsize = sizeof(NativeGoroutine),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = native_dealloc,
    .tp_repr = native_repr,
    .tp_methods = native_goroutine_methods,
    .tp_getset = native_getset,
};

/* ---- native goroutines that touch Python ---- */

static char *forbidden; /* the page, and FORBIDDEN_BYTES of them: thread states are some KiB long */
#define FORBIDDEN_BYTES (64 * 1024)

static void
forbid_python(void)
{
    tstate_forbid(forbidden);
}

/* In a fault handler. */
void
native_fault(const void *addr)
{
    M *mp = getm();
    G *gp = mp != NULL && mp->set == NATIVE_SET ? mp->curg : NULL;
    if (gp == NULL || gp->stack_lo == NULL)
        return;
    void *fn = gp->cls->function(gp);
    if ((const char *)addr >= forbidden && (const char *)addr < forbidden + FORBIDDEN_BYTES)
        gmp_throw(
            "native goroutine %llu, function at %p, called into Python, which it may not: run what needs Python by "
            "gmp.go, or pass it numbers through a gmp.native.Chan",
            (unsigned long long)gp->goid, fn);
    bool guard;
    if (stack_find(addr, NULL, NULL, &guard) && guard)
        gmp_throw("stack overflow in native goroutine %llu, function at %p: it used more than its %zu KiB",
                  (unsigned long long)gp->goid, fn, stack_class_size((StackClass)gp->stackclass) / 1024);
    gmp_throw(
        "native goroutine %llu, function at %p, touched the address %p, which it may not; the Python API is not for it "
        "either",
        (unsigned long long)gp->goid, fn, addr);
}

static PyObject *
py_native_count(PyObject *module, PyObject *unused)
{
    return PyLong_FromLongLong(num_goroutine(NATIVE_SET));
}

PyMethodDef native_methods[] = {
    {"_native_go", py_native_go, METH_VARARGS, NULL},
    {"_native_count", py_native_count, METH_NOARGS,
     PyDoc_STR("_native_count($module, /)\n--\n\nNative goroutines alive.")},
    {0},
};

int
native_module_init(PyObject *module)
{
    forbidden = sys_reserve(FORBIDDEN_BYTES);
    if (forbidden == NULL || !sys_protect(forbidden, FORBIDDEN_BYTES)) {
        PyErr_NoMemory();
        return -1;
    }
    NATIVE_SET->thread_begin = forbid_python;
    if (PyType_Ready(&NativeGoroutine_Type) < 0)
        return -1;
    return PyModule_AddObjectRef(module, "NativeGoroutine", (PyObject *)&NativeGoroutine_Type);
}
