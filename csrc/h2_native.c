/* h2_native.c: native goroutines for the gRPC server: the only file of the engine that knows how they come about. */
#include "h2.h"
#include "native.h"

int
h2_native_start(void)
{
    return native_init();
}

int
h2_go(void (*fn)(void *arg), void *arg)
{
    return native_go(fn, arg, GMP_STACK_64K, NULL);
}
