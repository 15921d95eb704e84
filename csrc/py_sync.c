/* py_sync.c: Mutex and WaitGroup: the core's, as Python types.  gmp/sync.py adds what is simpler in Python. */
#include "py_gmp.h"
#include "sync.h"

/* ---- Mutex ---- */

typedef struct PyMutexObject {
    PyObject_HEAD
    Gmutex m;
} PyMutexObject;

static int
lock_wait(Gmutex *m, int64_t timeout)
{
    PyWait w = {.timeout = timeout};
    for (;;) {
        if (py_wait_begin(&w) < 0)
            return -1;
        int code = gmutex_lock(m, w.timeout);
        if (code == GMP_OK)
            return 0;
        int again = py_wait_again(&w, code);
        if (again == 0)
            py_raise_code(code, "Mutex.lock()", &w);
        if (again <= 0)
            return -1;
    }
}

static PyObject *
mutex_lock_method(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    Gmutex *m = &((PyMutexObject *)self)->m;
    int64_t timeout = -1;
    if (GMP_UNLIKELY(nargs != 0 || kwnames != NULL)) {
        PyObject *arg = py_timeout_arg(args, nargs, kwnames, "Mutex.lock()");
        if (arg == NULL || py_timeout(arg, "Mutex.lock()", &timeout) < 0)
            return NULL;
    }
    if (GMP_LIKELY(gmutex_lock(m, 0) == GMP_OK))
        Py_RETURN_NONE;
    if (timeout == 0) {
        py_raise_code(GMP_ETIMEDOUT, "Mutex.lock()", NULL);
        return NULL;
    }
    if (lock_wait(m, timeout) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *
mutex_enter(PyObject *self, PyObject *unused)
{
    Gmutex *m = &((PyMutexObject *)self)->m;
    if (GMP_UNLIKELY(gmutex_lock(m, 0) != GMP_OK) && lock_wait(m, -1) < 0)
        return NULL;
    return Py_NewRef(self);
}

static PyObject *
mutex_trylock_method(PyObject *self, PyObject *unused)
{
    return PyBool_FromLong(gmutex_lock(&((PyMutexObject *)self)->m, 0) == GMP_OK);
}

static PyObject *
mutex_unlock_method(PyObject *self, PyObject *unused)
{
    if (gmutex_unlock(&((PyMutexObject *)self)->m) < 0) {
        PyErr_SetString(PyExc_RuntimeError, "unlock of an unlocked Mutex");
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
mutex_exit(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    return mutex_unlock_method(self, NULL);
}

static PyObject *
mutex_locked_method(PyObject *self, PyObject *unused)
{
    return PyBool_FromLong(gmutex_locked(&((PyMutexObject *)self)->m));
}

static PyObject *
mutex_repr(PyObject *self)
{
    return PyUnicode_FromFormat("<gmp.sync.Mutex at %p, %s>", self,
                                gmutex_locked(&((PyMutexObject *)self)->m) ? "locked" : "unlocked");
}

static PyMethodDef mutex_methods[] = {
    {"lock", (PyCFunction)(void (*)(void))mutex_lock_method, METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR("lock($self, /, timeout=None)\n--\n\nLock, parking until it is free.\n\n"
               "timeout: seconds; None waits for ever, 0 tries.  Raises TimeoutError.  Go: (*sync.Mutex).Lock.")},
    {"try_lock", mutex_trylock_method, METH_NOARGS,
     PyDoc_STR("try_lock($self, /)\n--\n\nLock if it is free; return whether it was.  Go: (*sync.Mutex).TryLock.")},
    {"unlock", mutex_unlock_method, METH_NOARGS,
     PyDoc_STR("unlock($self, /)\n--\n\nUnlock; any goroutine may.  Raises RuntimeError when it is not locked.\n\n"
               "Go: (*sync.Mutex).Unlock.")},
    {"locked", mutex_locked_method, METH_NOARGS, PyDoc_STR("locked($self, /)\n--\n\nWhether it is locked now.")},
    {"__enter__", mutex_enter, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)(void (*)(void))mutex_exit, METH_FASTCALL, NULL},
    {0},
};
static PyTypeObject Mutex_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "gmp.sync.Mutex",
    .tp_doc =
        PyDoc_STR("Mutex()\n--\n\nA lock that parks goroutines instead of blocking threads; `with mutex:` locks it.\n\n"
                  "It belongs to no thread, so a goroutine may park while it holds it and go on elsewhere; it is not\n"
                  "reentrant.  A waiter is overtaken for 1 ms at most.  Go: sync.Mutex."),
    .tp_basicsize = sizeof(PyMutexObject),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_repr = mutex_repr,
    .tp_methods = mutex_methods,
};

/* ---- WaitGroup ---- */

typedef struct PyWaitGroup {
    PyObject_HEAD
    Gwaitgroup wg;
} PyWaitGroup;

static PyObject *
waitgroup_change(PyObject *self, int64_t delta)
{
    PyWaitGroup *wg = (PyWaitGroup *)self;
    if (gwaitgroup_add(&wg->wg, delta) < 0) {
        PyErr_Format(PyExc_ValueError, "negative WaitGroup counter: it is %lld and %lld was to be added",
                     (long long)wg->wg.n, (long long)delta);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
waitgroup_add(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs > 1) {
        PyErr_Format(PyExc_TypeError, "WaitGroup.add() takes one int, %zd arguments were given", nargs);
        return NULL;
    }
    long long delta = 1;
    if (nargs == 1) {
        if (!PyIndex_Check(args[0])) {
            PyErr_Format(PyExc_TypeError, "WaitGroup.add() argument must be an int, not %.200s",
                         Py_TYPE(args[0])->tp_name);
            return NULL;
        }
        delta = PyNumber_AsSsize_t(args[0], PyExc_OverflowError);
        if (delta == -1 && PyErr_Occurred())
            return NULL;
    }
    return waitgroup_change(self, delta);
}

static PyObject *
waitgroup_done(PyObject *self, PyObject *unused)
{
    return waitgroup_change(self, -1);
}

PyObject *
py_waitgroup_wait(Gwaitgroup *wg, PyObject *timeout, const char *what)
{
    PyWait w = {0};
    if (py_timeout(timeout, what, &w.timeout) < 0)
        return NULL;
    int code = gwaitgroup_wait(wg, 0);
    while (code != GMP_OK && w.timeout != 0) {
        if (py_wait_begin(&w) < 0)
            return NULL;
        code = gwaitgroup_wait(wg, w.timeout);
        if (code == GMP_OK)
            break;
        int again = py_wait_again(&w, code);
        if (again < 0)
            return NULL;
        if (again == 0)
            break;
    }
    if (code != GMP_OK) {
        py_raise_code(code, what, &w);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
waitgroup_wait(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *timeout = py_timeout_arg(args, nargs, kwnames, "WaitGroup.wait()");
    return timeout != NULL ? py_waitgroup_wait(&((PyWaitGroup *)self)->wg, timeout, "WaitGroup.wait()") : NULL;
}

static PyObject *
waitgroup_get_count(PyObject *self, void *closure)
{
    return PyLong_FromLongLong(((PyWaitGroup *)self)->wg.n);
}

static PyMethodDef waitgroup_methods[] = {
    {"add", (PyCFunction)(void (*)(void))waitgroup_add, METH_FASTCALL,
     PyDoc_STR(
         "add($self, delta=1, /)\n--\n\nAdd delta, an int of either sign, to the counter.\n\n"
         "Raises ValueError when it would become negative; it keeps its value then.  Go: (*sync.WaitGroup).Add.")},
    {"done", waitgroup_done, METH_NOARGS,
     PyDoc_STR("done($self, /)\n--\n\nTake one off the counter.  Raises ValueError when it is 0.  Go: "
               "(*sync.WaitGroup).Done.")},
    {"wait", (PyCFunction)(void (*)(void))waitgroup_wait, METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR("wait($self, /, timeout=None)\n--\n\nPark until the counter is 0.\n\n"
               "timeout: seconds; None waits for ever, 0 tries.  Raises TimeoutError.  Go: (*sync.WaitGroup).Wait.")},
    {0},
};
static PyGetSetDef waitgroup_getset[] = {
    {"count", waitgroup_get_count, NULL, PyDoc_STR("The counter, an int."), NULL},
    {0},
};
static PyTypeObject WaitGroup_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "gmp._core.WaitGroup",
    .tp_doc = PyDoc_STR("WaitGroup()\n--\n\nWaits for a number of goroutines to end.  Go: sync.WaitGroup."),
    .tp_basicsize = sizeof(PyWaitGroup),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_new = PyType_GenericNew,
    .tp_methods = waitgroup_methods,
    .tp_getset = waitgroup_getset,
};

int
sync_module_init(PyObject *module)
{
    if (PyType_Ready(&Mutex_Type) < 0 || PyType_Ready(&WaitGroup_Type) < 0)
        return -1;
    if (PyModule_AddObjectRef(module, "Mutex", (PyObject *)&Mutex_Type) < 0)
        return -1;
    return PyModule_AddObjectRef(module, "WaitGroup", (PyObject *)&WaitGroup_Type);
}
