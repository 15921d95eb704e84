/* py_nogrpc.c: in place of py_grpc*.c in a build without libnghttp2: gmp.grpc finds no GrpcServer and says so. */
#include "py_gmp.h"

int
grpc_module_init(PyObject *module)
{
    (void)module;
    return 0;
}

void
grpc_before_fork(void)
{
}

void
grpc_after_fork(void)
{
}

void
grpc_afterfork_child(void)
{
}
