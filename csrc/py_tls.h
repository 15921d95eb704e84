/* py_tls.h: what py_tls.c is to the files py_grpc*.c. */
#ifndef GMP_PY_TLS_H
#define GMP_PY_TLS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "h2.h"

H2Tls *py_tls_get(PyObject *o);   /* borrowed; NULL with an exception: it is no GrpcTls */
PyObject *py_tls_peer(H2Conn *c); /* [(name, value as bytes)]; empty: no TLS */
int tls_module_init(PyObject *module);

#endif
