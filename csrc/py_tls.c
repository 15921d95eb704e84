/* py_tls.c: gmp._core.GrpcTls: a server's credentials (h2_tls.c), which ports are opened with. */
#include "py_tls.h"

#include "py_gmp.h"

typedef struct GrpcTls {
    PyObject_HEAD
    H2Tls *tls;
} GrpcTls;

static PyTypeObject GrpcTls_Type;

#define WHY 512

H2Tls *
py_tls_get(PyObject *o)
{
    if (PyObject_TypeCheck(o, &GrpcTls_Type))
        return ((GrpcTls *)o)->tls;
    PyErr_Format(PyExc_TypeError, "expected a GrpcTls, not %.200s", Py_TYPE(o)->tp_name);
    return NULL;
}

/* GrpcTls(folder or None): RuntimeError when there is no OpenSSL. */
static PyObject *
tls_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    const char *folder;
    char why[WHY];
    if ((kwargs != NULL && PyDict_GET_SIZE(kwargs) != 0) || !PyArg_ParseTuple(args, "z", &folder))
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "GrpcTls() takes no keyword arguments");
    if (!h2_tls_load(folder, why, sizeof why))
        return PyErr_Format(PyExc_RuntimeError, "%s", why);
    GrpcTls *self = (GrpcTls *)type->tp_alloc(type, 0);
    if (self != NULL && (self->tls = h2_tls_new()) == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void
tls_dealloc(PyObject *self)
{
    H2Tls *tls = ((GrpcTls *)self)->tls;
    if (tls != NULL)
        h2_tls_unref(tls);
    Py_TYPE(self)->tp_free(self);
}

/* set(((key, chain), ...), roots or None): ValueError, and nothing has changed. */
static PyObject *
tls_set(PyObject *self, PyObject *args)
{
    PyObject *pairs, *result = NULL;
    H2Pem roots = {0};
    Py_ssize_t n, len = 0;
    char why[WHY];
    if (!PyArg_ParseTuple(args, "O!z#", &PyTuple_Type, &pairs, &roots.data, &len))
        return NULL;
    roots.len = (size_t)len;
    n = PyTuple_GET_SIZE(pairs);
    H2Pem *pems = PyMem_Calloc((size_t)n * 2 + 1, sizeof *pems);
    if (pems == NULL)
        return PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < n; i++) {
        const char *key, *chain;
        Py_ssize_t nk, nc;
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(pairs, i), "y#y#", &key, &nk, &chain, &nc))
            goto done;
        pems[i] = (H2Pem){key, (size_t)nk};
        pems[n + i] = (H2Pem){chain, (size_t)nc};
    }
    if (h2_tls_set(((GrpcTls *)self)->tls, pems, pems + n, (uint32_t)n, roots.data != NULL ? &roots : NULL, why,
                   sizeof why))
        result = Py_NewRef(Py_None);
    else
        PyErr_Format(PyExc_ValueError, "%s", why);
done:
    PyMem_Free(pems);
    return result;
}

/* hold(): new connections wait for release() from now on. */
static PyObject *
tls_hold(PyObject *self, PyObject *unused)
{
    h2_tls_hold(((GrpcTls *)self)->tls);
    Py_RETURN_NONE;
}

/* waiting(): a mark for those that wait; 0: none does. */
static PyObject *
tls_waiting(PyObject *self, PyObject *unused)
{
    return PyLong_FromUnsignedLongLong(h2_tls_waiting(((GrpcTls *)self)->tls));
}

/* release(mark) */
static PyObject *
tls_release(PyObject *self, PyObject *arg)
{
    unsigned long long mark = PyLong_AsUnsignedLongLong(arg);
    if (mark == (unsigned long long)-1 && PyErr_Occurred())
        return NULL;
    h2_tls_release(((GrpcTls *)self)->tls, mark);
    Py_RETURN_NONE;
}

PyObject *
py_tls_peer(H2Conn *c)
{
    uint32_t n;
    const char *at = h2_tls_peer(c, &n);
    PyObject *list = PyList_New((Py_ssize_t)n);
    for (uint32_t i = 0; list != NULL && i < n; i++) {
        H2Pair p;
        at = h2_pair(at, &p);
        PyObject *item = Py_BuildValue("(s#y#)", p.name, (Py_ssize_t)p.nlen, p.value, (Py_ssize_t)p.vlen);
        if (item == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, (Py_ssize_t)i, item);
    }
    return list;
}

static PyMethodDef tls_methods[] = {
    {"set", tls_set, METH_VARARGS, NULL},
    {"hold", tls_hold, METH_NOARGS, NULL},
    {"waiting", tls_waiting, METH_NOARGS, NULL},
    {"release", tls_release, METH_O, NULL},
    {0},
};

static PyTypeObject GrpcTls_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "gmp._core.GrpcTls",
    .tp_doc = PyDoc_STR("Certificates and keys of a server, under gmp.grpc.ssl_server_credentials."),
    .tp_basicsize = sizeof(GrpcTls),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = tls_new,
    .tp_dealloc = tls_dealloc,
    .tp_methods = tls_methods,
};

int
tls_module_init(PyObject *module)
{
    if (PyType_Ready(&GrpcTls_Type) < 0)
        return -1;
    return PyModule_AddObjectRef(module, "GrpcTls", (PyObject *)&GrpcTls_Type);
}
