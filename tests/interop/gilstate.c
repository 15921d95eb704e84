/* gilstate.c: what Cython's "with gil", ctypes and others do: Python code called from C that has let go of the GIL, or that
 * runs on a thread that Python does not know.  Built by test_gilstate.py. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <pthread.h>

static PyObject *
call(PyObject *fn)
{
    PyGILState_STATE state = PyGILState_Ensure();
    PyObject *result = PyObject_CallNoArgs(fn);
    if (result == NULL)
        PyErr_WriteUnraisable(fn);
    PyGILState_Release(state);
    return result;
}

/* nogil(fn): fn() with the GIL dropped and taken again by PyGILState_*, on this thread. */
static PyObject *
nogil(PyObject *module, PyObject *fn)
{
    PyObject *result;
    Py_BEGIN_ALLOW_THREADS
    result = call(fn);
    Py_END_ALLOW_THREADS
    if (result == NULL && !PyErr_Occurred())
        PyErr_SetString(PyExc_RuntimeError, "fn raised");
    return result;
}

/* nested(fn): the same with the GIL held, as cygrpc does. */
static PyObject *
nested(PyObject *module, PyObject *fn)
{
    PyObject *result = call(fn);
    if (result == NULL)
        PyErr_SetString(PyExc_RuntimeError, "fn raised");
    return result;
}

typedef struct Foreign {
    PyObject *fn, *result;
} Foreign;

static void *
run(void *arg)
{
    Foreign *f = arg;
    f->result = call(f->fn);
    return NULL;
}

/* foreign(fn): fn() on a thread made here; waits for its end. */
static PyObject *
foreign(PyObject *module, PyObject *fn)
{
    Foreign f = {fn, NULL};
    pthread_t thread;
    int err;
    Py_BEGIN_ALLOW_THREADS
    err = pthread_create(&thread, NULL, run, &f);
    if (err == 0)
        pthread_join(thread, NULL);
    Py_END_ALLOW_THREADS
    if (f.result == NULL)
        PyErr_SetString(PyExc_RuntimeError, err != 0 ? "no thread" : "fn raised");
    return f.result;
}

static PyMethodDef methods[] = {
    {"nogil", nogil, METH_O, NULL},
    {"nested", nested, METH_O, NULL},
    {"foreign", foreign, METH_O, NULL},
    {0},
};
static struct PyModuleDef def = {PyModuleDef_HEAD_INIT, .m_name = "gilstate", .m_methods = methods};

PyMODINIT_FUNC
PyInit_gilstate(void)
{
    return PyModule_Create(&def);
}
