/* gmp.c: the public C interface: thin functions over the core. */
#include "gmp.h"

#include "runtime.h"

const char *
gmp_version(void)
{
    return GMP_VERSION;
}

int
gmp_num_cpu(void)
{
    return sys_ncpu();
}

int64_t
gmp_nanotime(void)
{
    return nanotime();
}

int64_t
gmp_num_goroutine(void)
{
    int64_t n = 0;

    for (int set = 0; set < SETS; set++)
        n += num_goroutine(&scheds[set]);
    return n;
}
