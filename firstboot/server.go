package firstboot

import (
	"context"
	"os"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/postgres"
)

// wizardAnswer is how long the database may take to tell of the wizard.
const wizardAnswer = 5 * time.Second

// wizardPassed says whether XiVO's wizard was passed: until then there are no
// contexts, and the services are disabled.
func (n *Node) wizardPassed(ctx context.Context) (bool, error) {
	if !n.Platform.Traits.WizardFlagInDatabase {
		return n.Platform.WizardMarked()
	}
	ctx, cancel := context.WithTimeout(ctx, wizardAnswer)
	defer cancel()
	db, err := n.DB(ctx)
	if err != nil {
		n.dbErr = nil // a step gives it more time
		return false, err
	}
	return postgres.WizardPassed(ctx, db)
}

// hasConverged says whether this instance has ended a pass: then the wizard was
// passed, and whatever is down now is no reason to wait for it again.
func (n *Node) hasConverged() bool {
	_, err := os.Stat(n.Platform.Path(statusFile))
	return err == nil
}

// checkSchema is an error when the database is that of another version than the
// version file tells: nothing may be written to it then.
func (n *Node) checkSchema(ctx context.Context) error {
	db, err := n.DB(ctx)
	if err != nil {
		return err
	}
	return postgres.CheckSchema(ctx, db, n.Platform)
}
