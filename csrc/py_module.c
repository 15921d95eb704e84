/* py_module.c: the module gmp._core.  gmp/_ffi.py loads the cffi binding from the same shared object. */
#include "py_gmp.h"

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "gmp._core",
    .m_doc = PyDoc_STR("The scheduler, channels and locks of gmp; use them through the package gmp."),
    .m_size = -1,
};

PyMODINIT_FUNC
PyInit__core(void)
{
    if (tstate_init() < 0)
        return NULL;
    PyObject *module = PyModule_Create(&module_def);
    if (module == NULL)
        return NULL;
    PyMethodDef *const tables[] = {goroutine_methods, chan_methods,   wait_methods,
                                   runtime_methods,   native_methods, time_methods};
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
        if (PyModule_AddFunctions(module, tables[i]) < 0)
            goto failed;
    if (wait_init(module) < 0 || chan_module_init(module) < 0 || sync_module_init(module) < 0 ||
        net_module_init(module) < 0 || native_module_init(module) < 0 || grpc_module_init(module) < 0 ||
        time_module_init(module) < 0 || goroutine_init(module) < 0)
        goto failed;
    return module;
failed:
    Py_DECREF(module);
    return NULL;
}
